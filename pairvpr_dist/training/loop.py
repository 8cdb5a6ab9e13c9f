"""The training loop: reads top to bottom.

Contract: the state of a run is its weights, its moments and its step; data order, random views, learning rate and
weight decay are functions of the step. So a run that was stopped and started again does what it would have done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.distributed import rank, world_size
from pairvpr_dist.files import read_json_lines
from pairvpr_dist.models.pair_vpr import PairVPR, write_export
from pairvpr_dist.models.weights import load_encoder, load_pretrained
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training import checkpoint
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.facts import training_facts
from pairvpr_dist.training.guards import BadPlaces, Guard
from pairvpr_dist.training.monitor import Monitor
from pairvpr_dist.training.optimizer import set_rates
from pairvpr_dist.training.schedules import Schedule, make_schedule
from pairvpr_dist.training.validation import validate

log = logging.getLogger(__name__)


def train(config: TrainingConfig, folder: Path) -> None:
    """Train one stage from its last checkpoint, or from the start, to its export.

    Every rank of a started process group calls. Raises `UserError` when a guard ends the run.
    """
    loader = EpochLoader(config.data, config.model.image_size, config.seed, rank(), world_size())
    bad_places = BadPlaces(folder, config.data, loader.places)
    tell_mixture(config, loader)
    schedule = make_schedule(config, loader.steps_per_epoch)
    engine, progress = start_or_resume(config, folder, loader.datasets)
    monitor = Monitor(folder, config.stage, progress.step, schedule.total_steps, config.data.places_per_batch)
    guard = Guard(folder, config.train.max_skipped_steps)
    started = time.perf_counter() - progress.seconds

    for batch, waited in timed(loader.batches(progress.step, schedule.total_steps)):
        set_rates(engine.groups, schedule, progress.step)
        loss, metrics = engine.forward(batch.to(engine.device), progress.step)
        applied = engine.step(loss)
        progress = Progress(progress.step + 1, progress.skipped_steps + (not applied), time.perf_counter() - started)
        guard.check_update(progress.step, applied)
        monitor.record({"loss": loss.detach(), **metrics}, waited)

        at_end = progress.step == schedule.total_steps
        logs, validates, saves = (
            at_end or is_due(progress.step, every)
            for every in (config.train.log_every, config.train.validate_every, config.train.checkpoint_every)
        )
        if logs or saves:
            bad_places.gather(loader)
        if logs:
            facts = facts_of_step(engine, loader, schedule, progress)
            monitor.write_window(progress.step, {**facts, "bad_places": len(bad_places)})
        with monitor.paused():
            if validates and config.data.validation:
                validate(config, engine, monitor, bad_places, progress.step)
            if saves:
                save(config, engine, folder, progress)

    monitor.close()
    export(config, engine, folder, progress)
    distributed.barrier()


def tell_mixture(config: TrainingConfig, loader: EpochLoader) -> None:
    """Log what comes of each shard set in an epoch, where there are several or weights."""
    if rank() == 0 and (len(config.data.shards) > 1 or config.data.weights):
        for line in loader.corpus.mixture():
            log.info("%s", line)


def start_or_resume(config: TrainingConfig, folder: Path, datasets: Sequence[str]) -> tuple[Engine, Progress]:
    """The engine as the newest checkpoint left it, or before the first step."""
    model = initial_model(config)
    objective = build_objective(config, model, datasets)
    # One rank chooses: what another could not read for a moment must not part them.
    latest = distributed.from_rank_0(lambda: checkpoint.find_latest(folder / "checkpoints"))
    if latest is None:
        return Engine(objective, config), Progress(step=0, skipped_steps=0, seconds=0.0)
    state, progress = checkpoint.load(latest)
    if rank() == 0:
        log.info("going on from step %d of %s", progress.step, folder)
    model.load_state_dict(state.model)
    engine = Engine(objective, config)
    engine.load_full_state(state)
    return engine, progress


def initial_model(config: TrainingConfig) -> PairVPR:
    """The model before the first step, the same on every rank; says loudly what starts from scratch."""
    torch.manual_seed(config.seed)
    model = PairVPR(config.model)
    if config.init.encoder:
        load_encoder(model, Path(config.init.encoder))
    if config.init.model:
        load_pretrained(model, Path(config.init.model))
    elif rank() == 0:
        what = "decoder starts" if config.init.encoder else "encoder and the decoder start"
        log.warning("the %s from scratch: no init.model, init.encoder=%s", what, config.init.encoder)
    return model


def timed(stream: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        started = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def is_due(step: int, every: int) -> bool:
    """Whether something that happens `every` so many steps (0: never) happens after `step` steps."""
    return every > 0 and step % every == 0


def facts_of_step(engine: Engine, loader: EpochLoader, schedule: Schedule, progress: Progress) -> dict[str, float]:
    """What a line of the log says beside the losses."""
    last = progress.step - 1
    return {
        "epoch": last // loader.steps_per_epoch,
        "lr": schedule.lr_at(last),
        "weight_decay": schedule.weight_decay_at(last),
        "grad_norm": engine.gradient_norm(),
        "skipped_steps": progress.skipped_steps,
    }


def save(config: TrainingConfig, engine: Engine, folder: Path, progress: Progress) -> None:
    """Write a checkpoint; every rank must call, rank 0 writes, all go on when it is whole."""
    state = engine.full_state()
    if state is not None:
        checkpoint.save(folder / "checkpoints", state, progress, config, config.train.keep_checkpoints)
    distributed.barrier()


def export(config: TrainingConfig, engine: Engine, folder: Path, progress: Progress) -> None:
    """Write the finished model; every rank must call."""
    state = engine.full_state()
    if state is not None:
        facts = training_facts(config, progress, read_json_lines(folder / "metrics.jsonl"))
        write_export(folder / "export", config.model, state.model, facts)
