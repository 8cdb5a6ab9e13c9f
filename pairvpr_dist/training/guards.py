"""What ends a run that has gone wrong, before it burns days or overwrites a good checkpoint.

Contract: an update whose gradient is not finite is skipped on every rank, so weights stay finite; a loss that is not
finite has such a gradient. A run that skips too often in a row ends with one line that names the step and the
checkpoint to go on from. A place that cannot be read costs its own samples only; when too many places are lost, the
run ends on every rank alike with the list of them.
"""

from __future__ import annotations

import csv
import io
import logging
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_text
from pairvpr_dist.settings import DataConfig

log = logging.getLogger(__name__)

SHOWN_PLACES = 5  # that an error names; the list has all


class Guard:
    """Watches the updates of one run."""

    def __init__(self, folder: Path, max_skipped_steps: int) -> None:
        self._checkpoints = folder / "checkpoints"
        self._limit = max_skipped_steps
        self._in_a_row = 0

    def check_update(self, step: int, applied: bool) -> None:
        """Count updates that DeepSpeed skipped because a gradient was not finite."""
        self._in_a_row = 0 if applied else self._in_a_row + 1
        if self._in_a_row >= self._limit:
            raise self._end(step)

    def _end(self, step: int) -> UserError:
        pointer = self._checkpoints / "latest"
        last = f"the last checkpoint is {pointer.read_text().strip()}" if pointer.exists() else "there is no checkpoint"
        return UserError(
            f"step {step}: {self._in_a_row} updates in a row were skipped for gradients that are not finite; {last} in "
            f"{self._checkpoints}; start the same command again with a lower optim.lr or with optim.clip_grad_norm"
        )


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
