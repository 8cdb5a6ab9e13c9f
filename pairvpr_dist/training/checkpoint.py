"""Checkpoints on disk, read by any number of ranks.

    checkpoints/step-NNNNNNNN/rank-0000.safetensors ...   what each rank held: stretches of the flattened tensors, fp32
                              state.json                  progress, updates, number of ranks, configuration
                              manifest.json               size and SHA-256 of every other file
    checkpoints/latest, best                              names of two of them

Contract: a folder has its name only when it is whole (`saving.py` writes it). One that fails its manifest is passed
over for the one before, aloud. A tensor is put together from stretches of any number of ranks. Nothing in it is code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json

log = logging.getLogger(__name__)
STATE, MANIFEST, LATEST, BEST = "state.json", "manifest.json", "latest", "best"
STARTS = "starts"  # in a rank's file: where in its whole tensor each stretch begins
WEIGHT = "weight"  # begins the keys of weights and buffers; moments have keys of their own
CHUNK = 1 << 22  # bytes read at once for a digest


@dataclass(frozen=True)
class Progress:
    """Where a run stands. The position in the data follows from it alone."""

    step: int = 0  # optimizer steps done, skipped ones included
    skipped_steps: int = 0
    skipped_in_a_row: int = 0  # of these the last ones, up to here
    data_offset: int = 0  # steps of data that were left out when the run returned to a checkpoint
    rewinds: int = 0  # returns to a checkpoint so far
    best: float | None = None  # of what train.best_metric names
    judged_by: str = ""  # what that is, and where it is measured
    validations_since_best: int = 0
    validated: int = 0  # the last step at which the model was validated

    @property
    def data_step(self) -> int:
        """The step of the data plan that is trained next."""
        return self.step + self.data_offset


class Checkpoint:
    """One checkpoint, open for reading."""

    def __init__(self, path: Path) -> None:
        content = read_json(path / STATE, "a checkpoint's state")
        self.path = path
        self.progress = Progress(**content["progress"])
        self.updates: int = content["updates"]
        self._stretches: dict[str, list[tuple[int, int, Path]]] = defaultdict(list)  # key -> start, stop, file
        self._open: dict[Path, Any] = {}
        for file in sorted(path.glob("rank-*.safetensors")):
            handle = self._open[file] = safe_open(file, framework="pt")
            starts: dict[str, int] = json.loads(handle.metadata()[STARTS])
            for key, start in starts.items():
                self._stretches[key].append((start, start + handle.get_slice(key).get_shape()[0], file))

    def read(self, key: str, start: int, numbers: int) -> Tensor:
        """`numbers` fp32 values of the flattened tensor `key` from `start` on; only these are read."""
        pieces = []
        for first, last, file in sorted(self._stretches[key]):
            low, high = max(start, first), min(start + numbers, last)
            if low < high:
                pieces.append(self._open[file].get_slice(key)[low - first : high - first])
        found = torch.cat(pieces) if pieces else torch.empty(0)
        if len(found) != numbers:
            raise UserError(f"{self.path}: holds {len(found)} of {numbers} numbers of {key}; remove this checkpoint")
        return found

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """Whole weights and buffers of the shapes given."""
        return {n: self.read(f"{WEIGHT}/{n}", 0, math.prod(s)).view(s) for n, s in shapes.items()}


def find_latest(folder: Path, before: int | None = None) -> Path | None:
    """The newest checkpoint below `folder`, of a step before `before`, that agrees with its manifest; None: none there.

    Raises `UserError` when there are checkpoints and every one is damaged.
    """
    checkpoints = [path for path in all_checkpoints(folder) if before is None or step_of(path) < before]
    for path in checkpoints:
        fault = find_fault(path)
        if fault is None:
            return path
        log.warning("checkpoint %s is damaged (%s); trying the one before", path, fault)
    if checkpoints:
        raise UserError(f"{folder}: every checkpoint is damaged; remove the folder to start again from the first step")
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder against its manifest, or None."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        ranks = read_json(path / STATE, "a checkpoint's state")["ranks"]
        if manifest.keys() != {STATE, *(rank_file(rank) for rank in range(ranks))}:
            return "the manifest names other files"
        for name, record in manifest.items():
            if record_of(path / name) != record:
                return f"{name} differs from the manifest"
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # ValueError: neither JSON nor text
        return f"{type(error).__name__}: {error}"
    return None


def all_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    return sorted(folder.glob("step-*"), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def name_of(step: int) -> str:
    """The folder of a step."""
    return f"step-{step:08d}"


def rank_file(rank: int) -> str:
    """The file of a rank."""
    return f"rank-{rank:04d}.safetensors"


def record_of(path: Path) -> dict[str, Any]:
    """Size and digest of a file, as the manifest holds them."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
