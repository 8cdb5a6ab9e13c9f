"""Checkpoints on disk.

Contract: a checkpoint is a folder `step-NNNNNNNN` of safetensors and JSON with a manifest of sizes and digests. It is
written beside, renamed when whole, and only then named by the pointer `latest`; so whenever the process dies, the last
good one is there. One that fails its manifest is passed over for the one before, aloud. Nothing in it is code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from pairvpr_dist.config import to_dict
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import new_folder, read_json, write_json, write_text
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.engine import FullState

log = logging.getLogger(__name__)
FILES = ("model.safetensors", "moments.safetensors", "state.json")
CHUNK = 1 << 22  # bytes read at once for a digest


@dataclass
class Progress:
    """Where a run stands. The position in the data follows from the step alone."""

    step: int  # optimizer steps done, skipped ones included
    skipped_steps: int
    seconds: float  # trained so far


def save(folder: Path, state: FullState, progress: Progress, config: TrainingConfig, keep: int) -> Path:
    """Write a checkpoint below `folder`, point `latest` to it, remove all but the `keep` newest."""
    path = folder / f"step-{progress.step:08d}"
    _remove_leftovers(folder, path)
    with new_folder(path) as aside:
        save_file(state.model, aside / "model.safetensors")
        save_file(state.moments, aside / "moments.safetensors")
        write_json(
            aside / "state.json",
            {"progress": vars(progress), "updates": state.updates, "config": to_dict(config)},
        )
        write_json(aside / "manifest.json", {name: _record(aside / name) for name in FILES})
    write_text(folder / "latest", path.name + "\n")
    for old in _checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return path


def load(path: Path) -> tuple[FullState, Progress]:
    """Read a checkpoint that `find_latest` named."""
    content = read_json(path / "state.json", "a checkpoint's state")
    model, moments = (load_file(path / name) for name in FILES[:2])
    return FullState(model, moments, content["updates"]), Progress(**content["progress"])


def find_latest(folder: Path) -> Path | None:
    """The newest checkpoint below `folder` that agrees with its manifest; None when there is none at all.

    Raises `UserError` when there are checkpoints and every one is damaged.
    """
    checkpoints = _checkpoints(folder)
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
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        for name in FILES:
            if _record(path / name) != manifest[name]:
                return f"{name} differs from the manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:  # ValueError: neither JSON nor text
        return f"{type(error).__name__}: {error}"
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoint folders, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _remove_leftovers(folder: Path, path: Path) -> None:
    """Remove what a process left that was killed while it wrote, and damaged checkpoints that the run passed over.

    Those are as new as `path` or newer; were they kept, they would count as the newest and be tried first.
    """
    for old in [*folder.glob(".step-*.part"), *(one for one in _checkpoints(folder) if one.name >= path.name)]:
        shutil.rmtree(old)


def _record(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
