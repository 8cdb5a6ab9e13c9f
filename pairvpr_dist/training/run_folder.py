"""The folder of one stage of one run, and all that is checked before processes start.

    <run>/<stage>/config.yaml      the resolved configuration
                  data.json        digests of the shard sets
                  checkpoints/     see checkpoint.py
                  metrics.jsonl, tensorboard/, reconstructions/
                  bad_places.csv   places that could not be read; there only when there are some
                  export/          the finished model; there only when the stage has ended

Contract: the same command on the same folder goes on where the run was. Another run's folder is refused with the keys
that differ, and so are shards of another content; keys that do not change the result (processes, ZeRO stage, workers,
logging, where the shards lie and how they are reached) may, and aloud those that rescue a diverged run.
"""

from __future__ import annotations

import logging
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from pairvpr_dist.config import STAGES, to_dict, to_yaml, training_config
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.data.plan import rank_columns
from pairvpr_dist.errors import UserError, nearest
from pairvpr_dist.files import read_json, write_json, write_text
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.models.weights import check_same_architecture, read_tensors
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import Stage2Config, SupVPRConfig, TrainingConfig
from pairvpr_dist.training.deepspeed_config import compiled_blocks, uses_bf16
from pairvpr_dist.training.recall import check_recall, measures_recall
from pairvpr_dist.training.validation import measured_names, validates, validation_loader
from pairvpr_dist.training.weights_and_biases import check_wandb

log = logging.getLogger(__name__)

FREE_KEYS = {
    "run", "data.shards", "data.validation", "data.synthetic", "data.workers", "train.zero_stage", "train.log_every",
    "train.accumulate", "train.checkpointing", "train.compile",
    "train.validate_every", "train.checkpoint_every", "train.keep_checkpoints", "train.keep_every",
    "train.best_metric", "train.best_is", "train.early_stop", "train.self_check", "train.max_skipped_steps",
    "train.max_rewinds", "train.hang_timeout", "train.profile_steps", "train.wandb", "data.max_bad_places",
    "data.max_bad_share", "objective.chunks",
}  # fmt: skip
FREE_SECTIONS = ("launch.", "data.remote.", "recall.")
LOCK = "lock"  # in a stage's folder, held by the process that works on it
RESCUE_KEYS = {"optim.lr", "optim.clip_grad_norm"}  # a diverged run may go on with gentler ones


def stage_folder(config: TrainingConfig) -> Path:
    """Where a stage of a run writes."""
    return Path(config.run) / config.stage


def is_finished(folder: Path) -> bool:
    """Whether the stage has written its model."""
    return (folder / "export" / "config.json").exists()


def has_begun(folder: Path) -> bool:
    """Whether the stage has made its first step. Before that, another configuration may take its folder."""
    return (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists()


def open_folder(config: TrainingConfig) -> Path:
    """Check everything that a user handed in, and make the stage's folder. `UserError` on any fault.

    What is there is not touched: another process may be working on it.
    """
    check(config)
    check_folder(config)
    folder = stage_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep_config(config: TrainingConfig) -> None:
    """Write what the run is into its stage's folder; for who holds the folder's lock."""
    folder = stage_folder(config)
    write_json(folder / "data.json", data_content(config))
    write_text(folder / "config.yaml", to_yaml(config))


def data_content(config: TrainingConfig) -> dict[str, list[str]]:
    """Digests of the shard sets: what they hold decides the order of places, not where they lie."""
    named = {"shards": config.data.shards, "validation": config.data.validation}
    if config.data.synthetic:
        named["synthetic"] = config.data.synthetic
    remote = config.data.remote
    return {key: [ShardSet.open(where, remote).manifest.digest for where in named[key]] for key in named}


def check_folder(config: TrainingConfig) -> None:
    """That the stage's folder is new, empty or this run's own."""
    folder = stage_folder(config)
    if (folder / "config.yaml").exists():
        differing = _differences(read_config(folder), config)
        if has_begun(folder) and read_json(folder / "data.json", "a run's data") != data_content(config):
            differing.append("the content of data.shards, data.synthetic or data.validation")
        if differing and has_begun(folder):
            raise UserError(f"{folder}: holds a run with other settings ({'; '.join(differing)}); name another run=...")
    elif folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise UserError(f"{folder}: holds something else than a run; name another run=...")


def read_config(folder: Path) -> TrainingConfig:
    """The configuration in a stage's folder."""
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{path}: no such file; it should be a run's configuration")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path}: not readable as a run's configuration: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or values.get("stage") not in STAGES:
        raise UserError(f"{path}: not a run's configuration; name another run=...")
    return training_config(values, str(path))


def check(config: TrainingConfig) -> None:
    """Everything that can be known to fail on any machine of the run before the first step."""
    check_data(config)
    check_model(config)
    check_wandb(config.train)
    if compiled_blocks(config) != "none" and not torch.cuda.is_available():
        _check_compiler(config)


def check_data(config: TrainingConfig) -> None:
    """That the shards are there and a batch can be dealt out over the processes."""
    check_shares(config)
    processes = config.launch.processes
    loaders = {"data.shards": EpochLoader(config.data, config.model.image_size, config.seed, 0, processes)}
    if config.data.validation:
        loaders["data.validation"] = validation_loader(config, 0, processes)
    if isinstance(config, SupVPRConfig):
        for key, loader in loaders.items():
            loader.corpus.require_cities(key)
    if isinstance(config, Stage2Config) and measures_recall(config):
        check_recall(config)
    if config.train.best_metric and not validates(config):
        where = "data.validation=..." + (" or recall.data=..." if config.stage == "stage2" else "")
        raise UserError(f"train.best_metric={config.train.best_metric}: nothing is validated; name {where}")
    names = measured_names(config)
    metric = config.train.best_metric
    if metric is not None and metric not in names:
        raise UserError(f"train.best_metric={metric}: is not measured; {nearest(metric, names)}")


def check_shares(config: TrainingConfig) -> None:
    """That a batch can be dealt out over the processes; needs no shards."""
    processes = config.launch.processes
    rank_columns(config.data.places_per_batch, 0, processes)
    share, parts = config.data.places_per_batch // processes, config.train.accumulate
    if share % parts:
        raise UserError(f"train.accumulate={parts}: must divide the {share} places of a process "
                        f"(data.places_per_batch={config.data.places_per_batch} over {processes})")  # fmt: skip
    if parts > 1 and uses_bf16(config) and config.train.zero_stage < 2:
        raise UserError(f"train.accumulate={parts}: below ZeRO-2 DeepSpeed would sum the parts' gradients in bf16; "
                        "take train.zero_stage=2")  # fmt: skip
    if config.stage == "stage2" and config.data.places_per_batch < 2:
        raise UserError("data.places_per_batch=1: stage 2 needs at least 2 places in a batch to find negatives")


def check_model(config: TrainingConfig) -> None:
    """That the model can be built and the weights that it starts from fit."""
    with torch.device("meta"):
        model = PairVPR(config.model)
    build_objective(config, model, [])
    if config.init.model:
        check_same_architecture(model.config, Path(config.init.model))
    if config.init.encoder:
        read_tensors(Path(config.init.encoder))


def check_gpus(processes: int) -> None:
    """That this machine, if it has GPUs, has one for each process that it shall run."""
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"launch.processes={processes}: this machine has {torch.cuda.device_count()} GPUs")


def _check_compiler(config: TrainingConfig) -> None:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not shutil.which("g++") or not headers.exists():
        absent = str(headers) if shutil.which("g++") else "g++"
        raise UserError(
            f"train.compile={config.train.compile}: {absent} is not on this machine; install g++ and Python's headers "
            "(Debian: g++ python3-dev), or take train.compile=none"
        )


def _differences(old: TrainingConfig, new: TrainingConfig) -> list[str]:
    flat_old, flat_new = flatten(to_dict(old)), flatten(to_dict(new))
    differing = [key for key in sorted(flat_old.keys() | flat_new.keys()) if flat_old.get(key) != flat_new.get(key)]
    for key in RESCUE_KEYS.intersection(differing):
        log.warning("%s was %s and is %s from here on", key, flat_old[key], flat_new[key])
    return [
        f"{key}: {flat_old.get(key)}, now {flat_new.get(key)}"
        for key in differing
        if key not in FREE_KEYS | RESCUE_KEYS and not key.startswith(FREE_SECTIONS)
    ]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their whole keys, as `data.remote.cache`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
