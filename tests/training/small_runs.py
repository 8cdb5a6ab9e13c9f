"""Small training runs on a small synthetic city, and what is read from their folders."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from launchers.processes import set_environment
from pairvpr_dist.config import load_config
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.run_folder import keep_config, open_folder

PLACES = 12
SMALL = {
    "stage1": ["data.places_per_batch=6", "optim.warmup_epochs=0"],
    "stage2": ["data.places_per_batch=6", "optim.warmup_epochs=0", "objective.pair_loss_warmup_steps=[0,4]"],
}
ALWAYS = ["train.log_every=1", "train.keep_checkpoints=100", "train.self_check=false", "launch.threads=1"]


def overrides(stage: str, shards: Path, run: Path, changes: Sequence[str] = ()) -> list[str]:
    """`key=value` of a small run: 6 places a step, 2 steps an epoch, every step logged, every checkpoint kept."""
    return [f"data.shards={shards}", f"run={run}", *SMALL[stage], *ALWAYS, *changes]


def small_config(stage: str, shards: Path, run: Path, changes: Sequence[str] = ()) -> TrainingConfig:
    return load_config(stage, "tiny", overrides(stage, shards, run, changes))


def opened(config: TrainingConfig) -> Path:
    """The stage's folder as a launcher leaves it to the workers."""
    folder = open_folder(config)
    keep_config(config)
    return folder


def run_program(name: str, processes: int, *arguments: object) -> None:
    """Run a program beside this file as `processes` ranks; raises when one of them fails."""
    set_environment(threads=1)
    agent = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=f"test-{os.getpid()}",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2,
    )  # fmt: skip
    elastic_launch(agent, sys.executable)(str(Path(__file__).parent / name), *map(str, arguments))


def log_of(stage_folder: Path, names: Sequence[str]) -> list[list[float]]:
    """Step and the named metrics of every line of a run's log."""
    lines = [json.loads(line) for line in (stage_folder / "metrics.jsonl").read_text().splitlines()]
    return [[line["step"], *(line[name] for name in names)] for line in lines]


def weights_of(stage_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(stage_folder / "export" / "model.safetensors")
