"""What a run says of itself when it starts, and its export of its making.

Contract: an export holds the weights of the run's best or last checkpoint, and its model card stage, data, licences,
metrics up to there, versions and commit.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pairvpr_dist.config import to_dict
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.distributed import gather_objects, world_size
from pairvpr_dist.files import read_json_lines
from pairvpr_dist.models.pair_vpr import PairVPR, write_export
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import BEST, Checkpoint, Progress, name_of
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.schedules import Schedule


def training_facts(config: TrainingConfig, progress: Progress, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Facts for the model card. `lines` are those of metrics.jsonl; the last value of each metric is kept."""
    data = config.data
    manifests = [ShardSet.open(where, data.remote).manifest for where in (*data.shards, *data.synthetic)]
    weighed = [f", weight {w:g}" if w != 1 else "" for w in data.weights or [1.0] * len(data.shards)]
    weighed += [f", synthetic, {100 * data.synthetic_share:g} % of an epoch"] * len(data.synthetic)
    metrics = {name: value for line in lines for name, value in line.items()}
    return {
        "stage": config.stage,
        "size": config.size,
        "steps": progress.step,
        "epochs": int(metrics.get("epoch", -1)) + 1,  # the last may have been cut short
        "data": ", ".join(
            f"{' and '.join(m.datasets)} ({m.digest[:12]}{told})" for m, told in zip(manifests, weighed, strict=True)
        ),
        "places": sum(m.places for m in manifests),
        "licence of the data": "; ".join(sorted({name for m in manifests for name in m.licences})),
        "metrics": {k: v for k, v in metrics.items() if k.startswith(("loss", "validation/"))},
        "versions": {name: version(name) for name in ("torch", "deepspeed", "timm", "pairvpr_dist")},
        "cuda": torch.version.cuda if torch.cuda.is_available() else "none",
        "commit": commit(),
        "config": to_dict(config),
    }


def commit() -> str:
    """The commit of the code that runs, 'unknown' outside a checkout."""
    here = Path(__file__).parents[2]
    if (here / "COMMIT").exists():  # a copy of a checkout, made by launchers/snapshot.py
        return (here / "COMMIT").read_text(encoding="utf-8").strip()
    git = shutil.which("git")
    if git is None:
        return "unknown"
    answer = subprocess.run([git, "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def facts_of_start(total_steps: int, steps_per_epoch: int) -> dict[str, object]:
    """What the history says of a start; every rank must call."""
    hosts = gather_objects(socket.gethostname())
    return {
        "processes": world_size(),
        "hosts": sorted(set(hosts)),
        "job": os.environ.get("SLURM_JOB_ID"),
        "commit": commit(),
        "total_steps": total_steps,
        "steps_per_epoch": steps_per_epoch,
    }


def facts_of_step(engine: Engine, loader: EpochLoader, schedule: Schedule, progress: Progress) -> dict[str, float]:
    """What a line of the log says beside the losses."""
    last = progress.step - 1
    return {
        "epoch": (progress.data_step - 1) // loader.steps_per_epoch,
        "lr": schedule.lr_at(last),
        "weight_decay": schedule.weight_decay_at(last),
        "grad_norm": engine.gradient_norm(),
        "skipped_steps": progress.skipped_steps,
    }


def export(config: TrainingConfig, folder: Path, progress: Progress) -> None:
    """Write the finished model: of the best checkpoint where `train.best_metric` says which, else the last; rank 0."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in PairVPR(config.model).state_dict().items()}
    checkpoints = folder / "checkpoints"
    best = config.train.best_metric is not None and progress.best is not None
    chosen = Checkpoint(checkpoints / ((checkpoints / BEST).read_text().strip() if best else name_of(progress.step)))
    weights = chosen.weights(shapes)
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if line["step"] <= chosen.progress.step]
    facts = training_facts(config, chosen.progress, lines)
    write_export(folder / "export", config.model, weights, facts)
