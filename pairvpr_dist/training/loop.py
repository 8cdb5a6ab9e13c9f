"""The training loop: reads top to bottom.

Contract: the state of a run is its weights, its moments and its `Progress`; data order, random views, learning rate and
weight decay are functions of the step. So a run that was stopped and started again does what it would have done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.distributed import rank, world_size
from pairvpr_dist.objectives.base import STEADY, Metrics
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training import checkpoint
from pairvpr_dist.training.agreement import check_agreement
from pairvpr_dist.training.best import has_ended, with_best
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.facts import export, facts_of_start, facts_of_step
from pairvpr_dist.training.guards import BadPlaces, Guard, Rewind, investigate
from pairvpr_dist.training.hangs import DATA, FORWARD, SAVE, START
from pairvpr_dist.training.history import ENDED, REWOUND, SIGNALLED, STARTED, STOPPED, add_event
from pairvpr_dist.training.monitor import Monitor
from pairvpr_dist.training.optimizer import set_rates
from pairvpr_dist.training.recall import measures_recall
from pairvpr_dist.training.saving import Saver, forget_after, take_back
from pairvpr_dist.training.schedules import Schedule, make_schedule
from pairvpr_dist.training.self_check import self_check
from pairvpr_dist.training.signals import Agreement, StopFlag
from pairvpr_dist.training.spikes import SpikeWatch
from pairvpr_dist.training.starting import start_or_resume, tell_mixture, tell_start
from pairvpr_dist.training.validation import validate, validates
from pairvpr_dist.training.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What stays the same over the steps of one start of a run."""

    config: TrainingConfig
    folder: Path
    loader: EpochLoader
    schedule: Schedule
    bad_places: BadPlaces
    guard: Guard
    saver: Saver
    agreement: Agreement
    watchdog: Watchdog


def train(config: TrainingConfig, folder: Path, flag: StopFlag) -> bool:
    """Train one stage from its last checkpoint, or from the start, to its export.

    Every rank of a started process group calls. True when the stage has ended; False when `flag` stopped it, all saved.
    Raises `UserError` when a guard ends the run.
    """
    with Watchdog(folder, config.train.hang_timeout) as watchdog:
        check_agreement(config, folder)
        return train_watched(prepare(config, folder, flag, watchdog))


def train_watched(run: Run) -> bool:
    """`train`, with all that it needs at hand."""
    config, folder = run.config, run.folder
    # One rank chooses: what another could not read for a moment must not part them.
    latest = distributed.from_rank_0(lambda: newest_checkpoint(folder))
    if rank() == 0:
        tell_start(config, latest)
    if latest is None and config.train.self_check:
        self_check(config, folder, run.loader, run.schedule)
    engine, progress = start_or_resume(config, latest, run.loader.datasets)
    add_event(folder, STARTED, progress.step, **facts_of_start(run.schedule.total_steps, run.loader.steps_per_epoch))
    while True:
        try:
            progress = train_steps(run, engine, progress)
            break
        except Rewind as request:
            bad = request.bad_steps
        # Out of the block above, whose traceback holds the step's tensors.
        engine.close()
        engine, progress = return_to_checkpoint(run, bad, progress)
    run.agreement.close()
    run.saver.close()
    ended = has_ended(run.config, run.schedule, progress)
    if ended and rank() == 0:
        export(config, folder, progress)
    add_event(folder, ENDED if ended else STOPPED, progress.step)
    distributed.barrier()
    return ended


def newest_checkpoint(folder: Path, before: int | None = None) -> Path | None:
    """The newest sound checkpoint of a stage's folder; one process calls."""
    take_back(folder / "checkpoints")
    return checkpoint.find_latest(folder / "checkpoints", before)


def prepare(config: TrainingConfig, folder: Path, flag: StopFlag, watchdog: Watchdog) -> Run:
    """Everything that a run needs beside its engine."""
    loader = EpochLoader(config.data, config.model.image_size, config.seed, rank(), world_size())
    tell_mixture(config, loader)
    return Run(
        config,
        folder,
        loader,
        make_schedule(config, loader.steps_per_epoch),
        BadPlaces(folder, config.data, loader.places),
        Guard(folder, config.train),
        Saver(folder, config),
        Agreement(flag),
        watchdog,
    )


def return_to_checkpoint(run: Run, bad: range, progress: Progress) -> tuple[Engine, Progress]:
    """The engine as the last checkpoint before the bad steps left it, with the data up to their end left out.

    As large language models were trained past such stretches (Chowdhery et al. 2022, PaLM, section 5.1). `progress`:
    where the steps that led here began.
    """
    run.watchdog.at(START, progress.step)
    run.saver.wait()
    latest = distributed.from_rank_0(lambda: newest_checkpoint(run.folder, before=bad.start))
    if rank() == 0:  # what was saved since must not be what a run that is killed now goes on from
        forget_after(latest, run.folder / "checkpoints")
    engine, saved = start_or_resume(run.config, latest, run.loader.datasets)
    offset = progress.data_offset + bad[-1] - saved.step  # a step of the log is one more than its data's
    if rank() == 0:
        told = "steps %d to %d were not finite: back to step %d, without the data up to there"
        log.warning(told, bad.start, bad[-1], saved.step)
    add_event(run.folder, REWOUND, saved.step, from_step=bad[-1], data_offset=offset)
    skipped, run.guard.skipped = progress.skipped_steps + run.guard.skipped, 0
    return engine, replace(saved, data_offset=offset, rewinds=progress.rewinds + 1, skipped_steps=skipped)


def train_steps(run: Run, engine: Engine, progress: Progress) -> Progress:
    """Train until the last step, or until a signal; the progress when it stopped, which has been saved."""
    with closing(Monitor(run.folder, run.config, progress, run.schedule.total_steps)) as monitor:
        spikes = SpikeWatch(run.folder, progress.step)
        run.guard.in_a_row = progress.skipped_in_a_row
        if progress.step > 0:
            progress, best = validated(run, engine, monitor, progress, saved=True)
            if best:
                run.saver.save(engine.part(), engine.updates(), progress, best)
        run.watchdog.at(DATA, progress.step)
        last = (
            progress.data_step
            if has_ended(run.config, run.schedule, progress)
            else run.schedule.total_steps + progress.data_offset
        )
        for batch, waited in timed(run.loader.batches(progress.data_step, last)):
            progress, metrics = train_step(run, engine, monitor, batch, progress)
            monitor.record(metrics, waited)
            spikes.record(progress.step, metrics.get(STEADY, metrics["loss"]), batch.places)
            stopping = run.agreement.reached() and progress.step < run.schedule.total_steps
            progress = at_border(run, engine, monitor, spikes, progress, stopping)
            if stopping or has_ended(run.config, run.schedule, progress):
                break
            run.watchdog.at(DATA, progress.step)
    run.watchdog.at(SAVE, progress.step)  # until the last one is whole, and the export
    return progress


def train_step(
    run: Run, engine: Engine, monitor: Monitor, batch: Batch, progress: Progress
) -> tuple[Progress, Metrics]:
    """One step: the progress after it, and its metrics, which stay on the device. Raises what a guard decides."""
    step = progress.step
    set_rates(engine.groups, run.schedule, step)

    def at(phase: str) -> None:
        run.watchdog.at(phase, step)
        monitor.forward.start() if phase == FORWARD else monitor.forward.stop()

    loss, metrics, applied = engine.train_on(batch.to(engine.device), step, at)
    if not applied:
        run.watchdog.at(SAVE, step)  # it takes longer than a step
        run.saver.wait()  # the guard looks for the last good checkpoint
        investigate(engine, batch, step, run.loader, run.folder, run.config)
    progress = replace(progress, step=step + 1, skipped_steps=progress.skipped_steps + (not applied))
    run.guard.check_update(progress.step, applied, progress.rewinds)
    progress = replace(progress, skipped_in_a_row=run.guard.in_a_row)
    return progress, {"loss": loss, **metrics}


def at_border(
    run: Run, engine: Engine, monitor: Monitor, spikes: SpikeWatch, progress: Progress, stopping: bool
) -> Progress:
    """What is due after a step: a line of the log, a validation, a checkpoint."""
    train, last = run.config.train, progress.step == run.schedule.total_steps
    saves = last or is_due(progress.step, train.checkpoint_every)
    logs = saves or is_due(progress.step, train.log_every)  # else a line would tell other steps after a resume
    if stopping:
        log.info("asked to stop: saving step %d", progress.step)
        add_event(run.folder, SIGNALLED, progress.step, signal=run.agreement.signal)
        logs = saves = True
        run.saver.save(engine.part(), engine.updates(), progress)
        run.saver.wait()  # there may be no time for more, so a validation is left to the next start
    if logs or saves:
        run.bad_places.gather(run.loader)
    if logs:
        spikes.check(run.loader.corpus.name)
        facts = facts_of_step(engine, run.loader, run.schedule, progress)
        monitor.write_window(progress.step, {**facts, "bad_places": len(run.bad_places)})
    with monitor.paused():
        if not stopping:
            progress, best = validated(run, engine, monitor, progress)
            run.watchdog.at(SAVE, progress.step)
            if best or saves or has_ended(run.config, run.schedule, progress):
                run.saver.save(engine.part(), engine.updates(), progress, best)
    return progress


def validated(
    run: Run, engine: Engine, monitor: Monitor, progress: Progress, saved: bool = False
) -> tuple[Progress, bool]:
    """The progress after the validation that is due at its step, if one is, and whether the model is the best so far.

    A run that is stopped or killed before it is done makes up for it when it goes on. `saved`: `progress` is.
    """
    last = progress.step == run.schedule.total_steps
    due = validates(run.config) and (last or is_due(progress.step, run.config.train.validate_every))
    if not due or progress.validated == progress.step:
        return progress, False
    if measures_recall(run.config) and not saved:  # it takes long
        run.watchdog.at(SAVE, progress.step)
        run.saver.save(engine.part(), engine.updates(), progress)
        run.saver.wait()  # what is measured of a model is kept until the next start only once the model is
    measured = validate(run.config, run.folder, engine, monitor, run.watchdog, run.bad_places, progress)
    return with_best(run.config, replace(progress, validated=progress.step), measured)


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
