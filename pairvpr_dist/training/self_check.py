"""One step, save and load before a long run.

Contract: what can only fail at the first step or the first checkpoint (memory, disk, kernels, a state that does not
come back bit for bit) fails before the run has begun, not hours later. It leaves nothing behind: the run that follows
is the one that would have been without it.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.distributed import rank
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import Progress, name_of
from pairvpr_dist.training.engine import Engine, Part, Stretch
from pairvpr_dist.training.optimizer import set_rates
from pairvpr_dist.training.saving import Saver
from pairvpr_dist.training.schedules import Schedule
from pairvpr_dist.training.starting import start_or_resume

log = logging.getLogger(__name__)


def self_check(config: TrainingConfig, folder: Path, loader: EpochLoader, schedule: Schedule) -> None:
    """Train one step, save it, load it into another engine and compare; every rank must call.

    Raises `UserError` when the first step is not finite, or when disk or memory do not suffice.
    """
    place = folder / "self_check"
    if rank() == 0:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    distributed.barrier()
    try:
        before = _step_and_save(config, place, loader, schedule)
        after = _load(config, place, loader)
        differing = sorted(key for key in before if not torch.equal(before[key].values, after[key].values))
        failed = any(distributed.gather_objects(differing))  # also: all have read
    finally:
        if rank() == 0:
            shutil.rmtree(place)
    if failed:
        raise AssertionError(f"self-check: these did not come back from the checkpoint as they were: {differing[:5]}")
    if rank() == 0:
        log.info("self-check: one step, saved and loaded")


def _step_and_save(config: TrainingConfig, place: Path, loader: EpochLoader, schedule: Schedule) -> Part:
    engine, _ = start_or_resume(config, None, loader.datasets)
    batch = next(loader.batches(0, 1))
    set_rates(engine.groups, schedule, schedule.warmup_steps)  # at step 0 of a warm-up nothing would move
    loss, _, applied = engine.train_on(batch.to(engine.device), 0)
    if not applied:
        raise UserError(
            f"self-check: the gradient of the first step is not finite (loss {loss.item()}); look at init.encoder and "
            "init.model, or try train.precision=fp32"
        )
    saver = Saver(place, config)
    saver.save(engine.part(), engine.updates(), Progress(step=1))
    saver.close()
    return _take_out(engine)


def _load(config: TrainingConfig, place: Path, loader: EpochLoader) -> Part:
    engine, _ = start_or_resume(config, place / "checkpoints" / name_of(1), loader.datasets)
    return _take_out(engine)


def _take_out(engine: Engine) -> Part:
    part = {key: Stretch(stretch.start, stretch.values.cpu().clone()) for key, stretch in engine.part().items()}
    engine.close()
    return part
