"""Writing checkpoints beside training.

Contract: training waits only while each rank copies what it holds into host memory; a thread of each rank then writes
its file, all of them into a folder aside. When every rank's file is whole, rank 0 adds manifest and name, and only then
moves the pointer `latest`; so whenever a process dies, the last good checkpoint is there. What could not be written
ends the run with one line on every rank, at the next save or at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pairvpr_dist import distributed
from pairvpr_dist.config import to_dict
from pairvpr_dist.distributed import rank, world_size
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_json, write_text
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import (
    BEST,
    LATEST,
    MANIFEST,
    STARTS,
    STATE,
    Progress,
    all_checkpoints,
    name_of,
    rank_file,
    record_of,
    step_of,
)
from pairvpr_dist.training.engine import Part
from pairvpr_dist.training.history import CHECKPOINT, add_event

RETIRED = ".retired"  # ends the name of a checkpoint while a newer one of the same step takes its place


class Saver:
    """Saves the checkpoints of one run, one at a time. Every rank makes one and calls alike."""

    def __init__(self, folder: Path, config: TrainingConfig) -> None:
        self._run, self._folder, self._config = folder, folder / "checkpoints", config
        self._group = distributed.host_group()  # the threads' own: training goes on in the others
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._writing: Future[None] | None = None
        self._staged: dict[str, Tensor] = {}  # host memory, used again by every save

    def save(self, part: Part, updates: int, progress: Progress, best: bool = False) -> None:
        """Begin to save what this rank holds, which may change when this returns. Waits for the save before.

        `best`: this checkpoint stays until a better one comes.
        """
        began = time.perf_counter()
        self.wait()
        starts = self._stage(part)
        state = {
            "progress": asdict(progress),
            "updates": updates,
            "ranks": world_size(),
            "best": best,
            "config": to_dict(self._config),
        }
        stall = time.perf_counter() - began
        self._writing = self._thread.submit(self._write, starts, state, stall)

    def wait(self) -> None:
        """Until the last save is whole. Raises `UserError` on every rank when it failed on any."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        self.wait()
        self._thread.shutdown()

    def _stage(self, part: Part) -> dict[str, int]:
        """Copy what this rank holds into host memory; gives where each stretch begins."""
        for key, stretch in part.items():
            if key not in self._staged:
                self._staged[key] = torch.empty_like(stretch.values, device="cpu", pin_memory=torch.cuda.is_available())
            self._staged[key].copy_(stretch.values, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {key: stretch.start for key, stretch in part.items()}

    def _write(self, starts: dict[str, int], state: dict[str, Any], stall: float) -> None:
        """In the thread: all ranks' files, then rank 0's part; the same verdict on every rank."""
        began = time.perf_counter()
        step = state["progress"]["step"]
        path = self._folder / name_of(step)
        aside = self._folder / f".{path.name}.part"
        self._each(lambda: self._make_room(path, aside) if rank() == 0 else None)
        records = self._each(lambda: self._write_own(aside / rank_file(rank()), starts))
        manifest = {rank_file(i): record for i, record in enumerate(records)}
        self._each(lambda: self._finish(path, aside, state, manifest) if rank() == 0 else None)
        size = sum(record["size"] for record in records)
        seconds = round(time.perf_counter() - began, 3)
        with suppress(OSError):  # the checkpoint is whole; what cannot be noted of it does no harm
            add_event(
                self._run, CHECKPOINT, step, seconds=seconds, stall=round(stall, 4), bytes=size, best=state["best"]
            )

    def _each(self, act: Any) -> list[Any]:
        """What `act` gives on every rank; when it fails on one, `UserError` on all of them."""
        try:
            answer, fault = act(), None
        except Exception as error:  # whatever it is, the other ranks wait to hear of it
            answer, fault = (
                None,
                f"rank {rank()}: {error!r}" if isinstance(error, RuntimeError) else f"rank {rank()}: {error}",
            )
        answers = distributed.gather_objects((answer, fault), self._group)
        faults = [fault for _, fault in answers if fault]
        if faults:
            for aside in self._folder.glob(".step-*.part") if rank() == 0 else ():
                shutil.rmtree(aside, ignore_errors=True)  # on a full disk this makes room for what comes after
            raise UserError(f"{self._folder}: no checkpoint could be written ({faults[0]}); {self._remedy(faults[0])}")
        return [answer for answer, _ in answers]

    def _remedy(self, fault: str) -> str:
        pointer = self._folder / LATEST
        last = f"the last good one is {pointer.read_text().strip()}" if pointer.exists() else "there is none before it"
        what = "make room" if "No space" in fault or "quota" in fault else "mend that"
        return f"{last}; {what} and start the same command again"

    def _make_room(self, path: Path, aside: Path) -> None:
        """Remove what a killed process half wrote, and damaged checkpoints that the run passed over.

        Those are as new as `path` or newer; were they kept, they would count as the newest and be tried first.
        """
        self._folder.mkdir(exist_ok=True)
        take_back(self._folder)
        for old in self._folder.glob(".step-*.part"):
            shutil.rmtree(old)
        for old in all_checkpoints(self._folder):
            if step_of(old) > step_of(path):
                shutil.rmtree(old)
        aside.mkdir()

    def _write_own(self, path: Path, starts: dict[str, int]) -> dict[str, Any]:
        save_file({key: self._staged[key] for key in starts}, path, metadata={STARTS: json.dumps(starts)})
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        return record_of(path)

    def _finish(self, path: Path, aside: Path, state: dict[str, Any], manifest: dict[str, Any]) -> None:
        write_json(aside / STATE, state)
        write_json(aside / MANIFEST, {**manifest, STATE: record_of(aside / STATE)})
        retired = self._folder / f".{path.name}{RETIRED}"
        if path.exists():  # damaged, or saved again after a validation that was the best
            os.replace(path, retired)
        os.replace(aside, path)
        shutil.rmtree(retired, ignore_errors=True)
        write_text(self._folder / LATEST, path.name + "\n")
        best = point_to_best(self._folder)
        for old in dispensable(all_checkpoints(self._folder), self._config, best):
            shutil.rmtree(old)


def point_to_best(folder: Path) -> str | None:
    """Write which checkpoint is the best, if any: the newest that was the best so far when it was saved."""
    best = best_of(folder)
    if best is None:
        (folder / BEST).unlink(missing_ok=True)
    else:
        write_text(folder / BEST, best + "\n")
    return best


def best_of(folder: Path) -> str | None:
    """The name of the best checkpoint below `folder`, as the checkpoints themselves say."""
    return next((path.name for path in all_checkpoints(folder) if was_best(path)), None)


def take_back(folder: Path) -> None:
    """Undo what a kill interrupted: a checkpoint that was about to be replaced by itself has its name again."""
    for retired in folder.glob(f".step-*{RETIRED}"):
        path = folder / retired.name.removeprefix(".").removesuffix(RETIRED)
        if path.exists():
            shutil.rmtree(retired)
        else:
            os.replace(retired, path)


def was_best(path: Path) -> bool:
    """Whether a checkpoint says so of itself; a damaged one does not."""
    try:
        return bool(json.loads((path / STATE).read_text()).get("best"))
    except (OSError, ValueError):
        return False


def forget_after(last: Path | None, folder: Path) -> None:
    """Remove the checkpoints below `folder` that are newer than `last`; none: all of them."""
    for path in all_checkpoints(folder):
        if last is None or step_of(path) > step_of(last):
            shutil.rmtree(path)
    if last is not None:
        write_text(folder / LATEST, last.name + "\n")
        point_to_best(folder)


def dispensable(checkpoints: list[Path], config: TrainingConfig, best: str | None) -> list[Path]:
    """Which of the checkpoints (the newest first) go: neither among the newest, nor a milestone, nor the best. Pure."""
    every = config.train.keep_every
    return [
        path
        for path in checkpoints[config.train.keep_checkpoints :]
        if path.name != best and not (every and step_of(path) % every == 0)
    ]
