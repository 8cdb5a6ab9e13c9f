"""What ends a run that has gone wrong, before it burns days or overwrites a good checkpoint.

Contract: an update whose gradient is not finite is skipped on every rank, so weights stay finite; a loss that is not
finite has such a gradient. Each is looked into and told. A run that skips too often in a row returns to its last good
checkpoint as often as `train.max_rewinds` allows, then ends with one line that names the step, the checkpoint to go on
from and the replay. A place that cannot be read costs its own samples only; when too many places are lost, the run ends
on every rank alike with the list of them.
"""

from __future__ import annotations

import csv
import io
import logging
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_text
from pairvpr_dist.settings import DataConfig, TrainConfig, TrainingConfig
from pairvpr_dist.training.checkpoint import all_checkpoints, step_of
from pairvpr_dist.training.diagnosis import diagnose
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.history import SKIPPED, add_event
from pairvpr_dist.training.replay import facts_of, replay_path, write_replay

log = logging.getLogger(__name__)

SHOWN_PLACES = 5  # that an error names; the list has all


class Rewind(Exception):  # noqa: N818 - a request, no error
    """The run should go on from the last checkpoint before `bad_steps`, without their data.

    bad_steps: as the log counts them, the first and all after it that were skipped.
    """

    def __init__(self, bad_steps: range) -> None:
        super().__init__(f"steps {bad_steps.start} to {bad_steps.stop - 1} were skipped")
        self.bad_steps = bad_steps


class Guard:
    """Watches the updates of one run. `rewinds`: times that the run has returned to a checkpoint already."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._folder, self._config = folder, config
        self.in_a_row = 0
        self.skipped = 0  # since it was set

    def check_update(self, step: int, applied: bool, rewinds: int) -> None:
        """Count updates that were refused. Raises `Rewind` or, when that is used up, `UserError`; on every rank.

        step: as the log counts it.
        """
        self.skipped += not applied
        self.in_a_row = 0 if applied else self.in_a_row + 1
        if self.in_a_row < self._config.max_skipped_steps:
            return
        skipped, self.in_a_row = range(step - self.in_a_row + 1, step + 1), 0
        good = distributed.from_rank_0(lambda: self._last_before(skipped.start))
        if good is not None and rewinds < self._config.max_rewinds:
            raise Rewind(skipped)
        raise self._end(skipped, good, rewinds)

    def _last_before(self, step: int) -> str | None:
        """The newest checkpoint of a step before `step`."""
        checkpoints = all_checkpoints(self._folder / "checkpoints")
        return next((path.name for path in checkpoints if step_of(path) < step), None)

    def _end(self, skipped: range, good: str | None, rewinds: int) -> UserError:
        last = f"the last checkpoint is {good}" if good else "there is no checkpoint"
        kept = [replay_path(self._folder, step - 1) for step in skipped]
        replay = next((path for path in reversed(kept) if path.exists()), None)
        look = f"; look with: pairvpr inspect {replay}" if replay else ""
        return UserError(
            f"step {skipped[-1]}: {len(skipped)} updates in a row were skipped for gradients that are not finite"
            f"{f', after {rewinds} rewinds' if rewinds else ''}; {last} in {self._folder / 'checkpoints'}; start the "
            f"same command again with a lower optim.lr, with optim.clip_grad_norm or train.max_rewinds{look}"
        )


def investigate(
    engine: Engine, batch: Batch, step: int, loader: EpochLoader, folder: Path, config: TrainingConfig
) -> None:
    """Look into an update that was refused: log where it went wrong, note it in the history, keep a replay.

    Every rank calls with its batch and with the step that the objective was given; weights and moments stay.
    """
    names = loader.place_names(batch)
    finding = diagnose(engine, batch.to(engine.device), step, names)
    replay = write_replay(engine, batch, step, names, finding, folder, config)
    if distributed.rank() == 0:
        places = ", ".join(finding.places[:SHOWN_PLACES]) + ", ..." * (len(finding.places) > SHOWN_PLACES)
        log.warning(
            "step %d: update skipped: %s%s%s",
            step + 1, finding, f"; places {places}" if places else "",
            f"; look with: pairvpr inspect {replay}" if replay else "",
        )  # fmt: skip
    add_event(folder, SKIPPED, step + 1, **facts_of(finding, replay))


class LostPlace(NamedTuple):
    """A line of bad_places.csv."""

    place: str  # data set/key
    file: str
    reason: str


class BadPlaces:
    """The places of a run that could not be read, over all ranks and from one start to the next.

    Every rank calls and comes to the same verdict; rank 0 logs each place once and writes `bad_places.csv`, whole.
    Raises `UserError` on every rank when more are lost than `data.max_bad_places` and `data.max_bad_share` allow.
    """

    def __init__(self, folder: Path, config: DataConfig, places: int) -> None:
        self._path, self._config, self._places = folder / "bad_places.csv", config, places
        self._lost = {lost.place: lost for lost in distributed.from_rank_0(lambda: _read_list(self._path))}
        self._check()

    def __len__(self) -> int:
        return len(self._lost)

    def gather(self, loader: EpochLoader) -> None:
        """Take over what the loaders of all ranks have noted since the last call."""
        noted = [LostPlace(loader.corpus.name(bad.place), bad.file, bad.reason) for bad in loader.take_bad()]
        before = len(self._lost)
        for lost in chain.from_iterable(distributed.gather_objects(noted)):
            if self._lost.setdefault(lost.place, lost) is lost and distributed.rank() == 0:
                log.warning("replaced a place that cannot be read: %s", _told(lost))
        if len(self._lost) > before:
            if distributed.rank() == 0:
                _write_list(self._path, list(self._lost.values()))
            self._check()

    def _check(self) -> None:
        config = self._config
        if len(self._lost) > max(config.max_bad_places, config.max_bad_share * self._places):
            shown = "; ".join(_told(lost) for lost in list(self._lost.values())[:SHOWN_PLACES])
            raise UserError(
                f"{len(self._lost)} of {self._places} places cannot be read, more than data.max_bad_places="
                f"{config.max_bad_places} and data.max_bad_share={config.max_bad_share} allow ({shown}; all of them: "
                f"{self._path}); repair the shards, remove that list and start the same command again"
            )


def _told(lost: LostPlace) -> str:
    return f"{lost.file}: {lost.place}: {lost.reason}"


def _read_list(path: Path) -> list[LostPlace]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        header, *rows = list(csv.reader(lines)) or [[]]
    if tuple(header) != LostPlace._fields or any(len(row) != len(header) for row in rows):
        raise UserError(f"{path}: not the list of a run's bad places; remove it")
    return [LostPlace(*row) for row in rows]


def _write_list(path: Path, lost: list[LostPlace]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([LostPlace._fields, *lost])
    write_text(path, text.getvalue())
