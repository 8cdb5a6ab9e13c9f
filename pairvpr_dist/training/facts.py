"""What an export says of its making: stage, data, licences, last metrics, versions, commit."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pairvpr_dist.config import to_dict
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import Progress


def training_facts(config: TrainingConfig, progress: Progress, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Facts for the model card. `lines` are those of metrics.jsonl; the last value of each metric is kept."""
    manifests = [ShardSet.open(where, config.data.remote).manifest for where in config.data.shards]
    weights = config.data.weights or [1.0] * len(manifests)
    metrics = {name: value for line in lines for name, value in line.items()}
    return {
        "stage": config.stage,
        "size": config.size,
        "steps": progress.step,
        "data": ", ".join(
            f"{' and '.join(m.datasets)} ({m.digest[:12]}" + (f", weight {w:g})" if w != 1 else ")")
            for m, w in zip(manifests, weights, strict=True)
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
