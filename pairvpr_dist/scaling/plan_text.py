"""A plan in words, as a table and as JSON.

Contract: pure. The first line answers whether it fits, how fast it is, how long it takes and what binds; every number
that an assumption went into is near the words that name it. Memory in GiB as CUDA counts it, files in GB.
"""

from __future__ import annotations

from dataclasses import asdict
from math import ceil
from typing import Any

from pairvpr_dist.scaling.candidate import Candidate
from pairvpr_dist.scaling.planner import Plan, changes
from pairvpr_dist.settings import CHECKPOINTING, Stage1Config, Stage2Config, TrainingConfig

GIB, GB, MB = 2**30, 1e9, 1e6
POLICY = dict(zip(CHECKPOINTING, ("no checkpointing", "selective checkpointing", "full checkpointing"), strict=True))


def first_line(one: Candidate) -> str:
    """Whether a candidate fits, its pace, time and cost, and what binds; or what it lacks."""
    if not one.fits:
        return f"does not fit: {settings(one)}, {needs(one)}"
    return (
        f"fits: {settings(one)}, {memory(one)}   {one.places_per_second:,.0f} {unit(one)}/s   {hours(one.hours)}   "
        f"{one.hours * one.config.launch.processes:,.0f} GPU-hours   binds: {one.binds}"
    )


def verdict(plan: Plan) -> str:
    """The first line of a plan: its best, or what comes nearest and what would do."""
    if plan.best is not None:
        return first_line(plan.best)
    return f"{first_line(plan.rejected[0])}; {enough(plan)}"


def enough(plan: Plan) -> str:
    """What would do, where nothing fits."""
    return f"fits on {plan.gpus_needed} GPUs" if plan.gpus_needed else "nor on more GPUs: a smaller model or image"


def advice(plan: Plan, configured: Any) -> list[str]:
    """What would be better than what is configured, with its keys; nothing where that is as good as the best.

    Where nothing fits: what comes nearest to it, and what would do.
    """
    best, given = plan.best, plan.given
    if best is None:
        nearest = plan.rejected[0]
        keys = " ".join(changes(nearest, configured)) or "as configured"
        return [f"nearest      {keys}   {needs(nearest)}; {enough(plan)}"]
    keys = " ".join(changes(best, configured))
    if given.fits and given.places_per_second >= (1 - best.setup.assumptions.tie) * best.places_per_second:
        return []
    return [f"better       {keys}   {first_line(best)}"] if keys else []


def describe(plan: Plan, configured: Any) -> str:
    """All that a user asks before queueing; `configured`: the configuration as it was given."""
    if plan.best is None:
        return "\n".join([verdict(plan), head(plan.given), "", table(plan)])
    best = plan.best
    lines = {
        "keys": " ".join(changes(best, configured)) or "as configured",
        "memory": memory_parts(best),
        "step": step(best),
        "run": run(best),
        "loader": loader(best),
        "checkpoint": checkpoint(best),
    }
    told = [f"{name:<12} {text}" for name, text in lines.items()]
    return "\n".join([verdict(plan), head(best), *told, "", table(plan)])


def head(one: Candidate) -> str:
    """What was planned, and what these figures are."""
    config, gpu = one.config, one.setup.gpu
    nodes = nodes_of(one)
    where = f"{nodes} node of {gpu.gpus_per_node}" if nodes == 1 else f"{nodes} nodes of {gpu.gpus_per_node}"
    return (
        f"{trained(config)} on {config.launch.processes} x {gpu.name} ({where}), global batch "
        f"{config.data.places_per_batch}; predicted, not measured"
    )


def trained(config: TrainingConfig) -> str:
    """Stage, size and recipe as they are typed: `stage2 vitb objective=supvpr`."""
    recipe = config.recipe if isinstance(config, Stage2Config) else None
    return f"{config.stage} {config.size}" + (f" objective={recipe}" if recipe else "")


def table(plan: Plan) -> str:
    """Each ZeRO stage and policy with its best, fastest first, then those that do not fit."""
    pace = f"{unit(plan.given)}/s".upper()
    rows = [["ZERO", "CHECKPOINTING", "BATCH", "GIB", pace, "HOURS", "MFU", "BINDS"]]
    for one in plan.ranked:
        rows.append([*names(one), f"{one.memory.total / GIB:.1f}", f"{one.places_per_second:,.0f}",
                     f"{one.hours:,.1f}", f"{one.mfu:.0%}", one.binds])  # fmt: skip
    for one in plan.rejected:
        rows.append([*names(one), f"{one.memory.total / GIB:.1f}", "does not fit", "", "", ""])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Columns of equal width, text to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = range(3, 7)
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def names(one: Candidate) -> list[str]:
    """ZeRO stage, policy and batch of a row."""
    return [str(one.config.train.zero_stage), one.config.train.checkpointing, batch(one)]


def settings(one: Candidate) -> str:
    """`micro-batch 64, ZeRO-2, no checkpointing`."""
    return f"micro-batch {batch(one)}, ZeRO-{one.config.train.zero_stage}, {POLICY[one.config.train.checkpointing]}"


def batch(one: Candidate) -> str:
    """Places of a rank that pass at once, and in how many parts all of them do."""
    share = one.config.data.places_per_batch // one.config.launch.processes
    if one.parts == 1:
        return str(share)
    if isinstance(one.config, Stage1Config):
        return f"{share // one.parts} x {one.parts}"
    return f"{share} in {one.parts} chunks"


def memory(one: Candidate) -> str:
    """`97 of 139 GiB`."""
    return f"{one.memory.total / GIB:.0f} of {one.setup.gpu.memory / GIB:.0f} GiB"


def needs(one: Candidate) -> str:
    """What is too much: `needs 42 of 44 GiB, of which 40 are usable`."""
    return f"needs {memory(one)}, of which {one.setup.usable / GIB:.0f} are usable"


def memory_parts(one: Candidate) -> str:
    """Where the memory of a rank goes."""
    parts = one.memory
    return (
        f"{parts.state.total / GIB:.1f} GiB of model state, {parts.activations / GIB:.1f} of activations, "
        f"{parts.working / GIB:.1f} while working; {one.setup.usable / GIB:.0f} GiB "
        f"({one.setup.assumptions.usable_memory:.0%}) are usable"
    )


def step(one: Candidate) -> str:
    """Where the time of a step goes."""
    time = one.step
    waits = f", loader {ms(one.seconds - time.seconds)}" if one.seconds > time.seconds else ""
    return (
        f"{ms(one.seconds)} ms: compute {ms(time.compute)}, communication that it does not hide {ms(time.exposed)}, "
        f"update {ms(time.update)}, waiting for the slowest {ms(time.straggling)}{waits}; MFU {one.mfu:.0%}"
    )


def ms(seconds: float) -> str:
    """Milliseconds."""
    return f"{1000 * seconds:,.1f}"


def run(one: Candidate) -> str:
    """Steps, and the data that they follow from."""
    train, data = one.config.train, one.setup.data
    steps = f"{train.epochs} epochs x {data.steps_per_epoch:,}" if not train.max_steps else "train.max_steps"
    return f"{one.steps:,} steps ({steps}); {data.places:,} places an epoch: {data.source}"


def loader(one: Candidate) -> str:
    """Cores and bytes that keep the pace."""
    loading, gpus = one.loading, min(one.setup.gpu.gpus_per_node, one.config.launch.processes)
    rate = loading.bytes_per_second / MB
    return (
        f"{loading.cores:.1f} cores and {rate:,.0f} MB/s a GPU, {gpus * loading.cores:.1f} and {gpus * rate:,.0f} a "
        f"node; data.workers={loading.workers} keep up to {loading.most_places_per_second:,.0f} {unit(one)}/s"
    )


def checkpoint(one: Candidate) -> str:
    """Size, time and how often."""
    found = one.checkpoints
    both = (found.best_every_steps, found.every_steps)
    best, configured = (f"{steps:,} steps ({hours(steps * one.seconds / 3600)})" for steps in both)
    return (
        f"{found.bytes / GB:.1f} GB; training waits {found.stall:.2g} s, on disk after {found.write:.2g} s; every "
        f"{configured}, best every {best}; {1 - found.goodput:.2%} lost to it and to failures"
    )


def nodes_of(one: Candidate) -> int:
    """Machines that a run is on."""
    return ceil(one.config.launch.processes / one.setup.gpu.gpus_per_node)


def unit(one: Candidate) -> str:
    """What is counted a second: in stage 1 a place is a pair."""
    return "pairs" if isinstance(one.config, Stage1Config) else "places"


def hours(value: float) -> str:
    """A time for people: minutes below an hour."""
    if value < 1:
        return f"{value * 60:.0f} min"
    return f"{value:.1f} h" if value < 10 else f"{value:,.0f} h"


def as_json(plan: Plan, configured: Any) -> dict[str, Any]:
    """The plan as plain values, for programs."""
    return {
        "fits": plan.best is not None,
        "gpus_needed": plan.gpus_needed,
        "given": of_candidate(plan.given, configured),
        "best": of_candidate(plan.best, configured) if plan.best else None,
        "alternatives": [of_candidate(one, configured) for one in [*plan.ranked, *plan.rejected]],
        "hardware": asdict(plan.given.setup.gpu),
        "data": asdict(plan.given.setup.data),
        "assumptions": asdict(plan.given.setup.assumptions),
    }


def of_candidate(one: Candidate, configured: Any) -> dict[str, Any]:
    """A candidate as plain values; pace and time only where it fits."""
    train = one.config.train
    found: dict[str, Any] = {
        "fits": one.fits,
        "overrides": changes(one, configured),
        "gpus": one.config.launch.processes,
        "zero_stage": train.zero_stage,
        "checkpointing": train.checkpointing,
        "parts": one.parts,
        "memory_bytes": asdict(one.memory) | {"total": one.memory.total, "usable": one.setup.usable},
    }
    if not one.fits:
        return found
    return found | {
        f"{unit(one)}_per_second": one.places_per_second,
        "steps": one.steps,
        "hours": one.hours,
        "gpu_hours": one.hours * one.config.launch.processes,
        "mfu": one.mfu,
        "binds": one.binds,
        "step_seconds": asdict(one.step) | {"total": one.seconds},
        "loader": asdict(one.loading),
        "checkpoint": asdict(one.checkpoints),
    }
