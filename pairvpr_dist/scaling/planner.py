"""Whether a run fits on its GPUs, how long it takes, and which settings are fastest: `plan`.

Contract: pure functions of configuration, GPU and assumptions; nothing of this machine is asked, and every figure is a
prediction of `costs/` and `simulation.py`. The candidates change only keys that leave the result as it is within
rounding: ZeRO stage, checkpointing, and the parts that a rank's batch passes in. The global batch stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from pairvpr_dist.costs.hardware import Gpu
from pairvpr_dist.costs.memory import count_numbers
from pairvpr_dist.errors import UserError
from pairvpr_dist.scaling.assumptions import Assumptions
from pairvpr_dist.scaling.candidate import Candidate, Setup, on_gpu
from pairvpr_dist.scaling.loading import Data
from pairvpr_dist.settings import CHECKPOINTING, Stage2Config, TrainingConfig

ZERO, POLICY, PARTS, CHUNKS = "train.zero_stage", "train.checkpointing", "train.accumulate", "objective.chunks"
WORKERS = "data.workers"
ZERO_STAGES = (0, 1, 2, 3)
FP32 = 4  # bytes of a number in a checkpoint
MOST_GPUS = 1 << 14  # that are tried where nothing fits


@dataclass(frozen=True)
class Plan:
    """What was asked for, and what is best."""

    given: Candidate
    ranked: list[Candidate]  # of each ZeRO stage and policy the fewest parts that fit, fastest first
    rejected: list[Candidate]  # those that fit in no number of parts, least memory first
    best: Candidate | None
    gpus_needed: int | None  # the least number that fits, where nothing does; none: not known up to MOST_GPUS


def plan(config: TrainingConfig, setup: Setup, fixed: Collection[str] = ()) -> Plan:
    """Plan a run of `config`, whose `launch.processes` are GPUs. Keys in `fixed` stay as they are. `UserError`."""
    check_divides(config, config.launch.processes)
    if config.train.precision == "fp32":
        raise UserError("train.precision=fp32: the table of GPUs has rates of bf16; leave it out")
    tried = [best_parts(ways, setup) for ways in candidates(config, fixed)]
    fitting = [with_workers(one, fixed) for one in tried if one.fits]
    ranked = sorted(fitting, key=lambda one: (-one.places_per_second, effort(one, config)))
    return Plan(
        given=Candidate(on_gpu(config), setup),
        ranked=ranked,
        rejected=sorted((one for one in tried if not one.fits), key=lambda one: one.memory.total),
        best=simplest(ranked, config, setup.assumptions.tie),
        gpus_needed=None if ranked else least_gpus(config, setup, fixed),
    )


def candidates(config: TrainingConfig, fixed: Collection[str] = ()) -> Iterator[Iterator[TrainingConfig]]:
    """`config` at every ZeRO stage and checkpointing policy, for each of them in fewer and in more parts. Pure."""
    train = config.train
    zeros = (train.zero_stage,) if ZERO in fixed else ZERO_STAGES
    policies = (train.checkpointing,) if POLICY in fixed else CHECKPOINTING
    for zero, policy in product(zeros, policies):
        base = config
        if zero == 3 and (policy == "selective" or train.compile in ("blocks", "graphs")):  # refused by settings.py
            continue
        if PARTS in fixed and train.accumulate > 1 and zero < 2:
            continue
        if isinstance(config, Stage2Config) and policy != "none":  # it takes chunks or a policy, never both
            if CHUNKS in fixed and config.objective.chunks > 1:
                continue
            base = replace(config, objective=replace(config.objective, chunks=1))
        yield in_parts(replace(base, train=replace(train, zero_stage=zero, checkpointing=policy)), fixed)


def in_parts(config: TrainingConfig, fixed: Collection[str]) -> Iterator[TrainingConfig]:
    """`config` with a rank's batch whole, then in more and more parts."""
    share = config.data.places_per_batch // config.launch.processes
    for parts in part_counts(config, share, fixed):
        if isinstance(config, Stage2Config):
            yield replace(config, objective=replace(config.objective, chunks=parts))
        else:
            yield replace(config, train=replace(config.train, accumulate=parts))


def best_parts(ways: Iterable[TrainingConfig], setup: Setup) -> Candidate:
    """The first way that fits, as in more parts a step takes no less time; where none fits, that of least memory."""
    tried = []
    for way in ways:
        tried.append(Candidate(on_gpu(way), setup))
        if tried[-1].fits:
            return tried[-1]
    return min(tried, key=lambda one: one.memory.total)


def part_counts(config: TrainingConfig, share: int, fixed: Collection[str]) -> list[int]:
    """Numbers of parts for a rank's `share` places: in stage 1 divisors of it, in stage 2 powers of two."""
    if isinstance(config, Stage2Config):
        if CHUNKS in fixed or config.train.checkpointing != "none":
            return [config.objective.chunks]
        images = share * config.data.images_per_place
        powers = [1 << power for power in range(images.bit_length()) if 1 << power <= images]
        return sorted({*powers, config.objective.chunks})
    if PARTS in fixed:
        return [config.train.accumulate]
    if config.train.zero_stage < 2 or config.train.compile == "graphs":  # see run_folder.check_shares and settings.py
        return [1]
    return [parts for parts in range(1, share + 1) if share % parts == 0]


def with_workers(candidate: Candidate, fixed: Collection[str]) -> Candidate:
    """The candidate with as many loader processes as its pace needs, where it has too few and cores are left."""
    loading, config, assumptions = candidate.loading, candidate.config, candidate.setup.assumptions
    needed = min(assumptions.worker_cores, -int(-loading.cores // 1))
    if WORKERS in fixed or needed <= config.data.workers:
        return candidate
    return replace(candidate, config=replace(config, data=replace(config.data, workers=needed)))


def simplest(ranked: list[Candidate], config: TrainingConfig, tie: float) -> Candidate | None:
    """Of those about as fast as the fastest, the one that changes least."""
    if not ranked:
        return None
    near = [one for one in ranked if one.places_per_second >= (1 - tie) * ranked[0].places_per_second]
    return min(near, key=lambda one: (effort(one, config), one.memory.total))


def effort(candidate: Candidate, config: TrainingConfig) -> tuple[int, int, int, int]:
    """How far a candidate is from plain: keys changed, then recomputation, parts, ZeRO stage."""
    train = candidate.config.train
    changed = len(changes(candidate, config))
    return changed, CHECKPOINTING.index(train.checkpointing), candidate.parts, train.zero_stage


def changes(candidate: Candidate, config: TrainingConfig) -> list[str]:
    """The overrides that make `config` the candidate. Pure."""
    other = candidate.config
    pairs = {
        ZERO: (config.train.zero_stage, other.train.zero_stage),
        POLICY: (config.train.checkpointing, other.train.checkpointing),
        PARTS: (config.train.accumulate, other.train.accumulate),
        WORKERS: (config.data.workers, other.data.workers),
    }
    if isinstance(config, Stage2Config) and isinstance(other, Stage2Config):
        pairs[CHUNKS] = (config.objective.chunks, other.objective.chunks)
    return [f"{key}={after}" for key, (before, after) in pairs.items() if before != after]


def least_gpus(config: TrainingConfig, setup: Setup, fixed: Collection[str] = ()) -> int | None:
    """The least number of GPUs, more than there are, on which something fits; none where nothing ever does."""
    batch, world = config.data.places_per_batch, config.launch.processes
    for more in range(world + 1, min(batch, MOST_GPUS) + 1):
        if batch % more == 0 and batch // more % (config.train.accumulate if PARTS in fixed else 1) == 0:
            larger = replace(config, launch=replace(config.launch, processes=more))
            if any(best_parts(ways, setup).fits for ways in candidates(larger, fixed)):
                return more
    return None


def check_divides(config: TrainingConfig, gpus: int) -> None:
    """That a batch can be dealt out over so many GPUs, and its parts. `UserError` with the nearest numbers that can."""
    batch, parts = config.data.places_per_batch, config.train.accumulate
    if gpus < 1 or batch % gpus:
        fewer = max((one for one in range(1, min(gpus, batch + 1)) if batch % one == 0), default=None)
        more = next((one for one in range(max(1, gpus + 1), batch + 1) if batch % one == 0), None)
        near = " or ".join(str(one) for one in (fewer, more) if one)
        raise UserError(f"--gpus {gpus}: data.places_per_batch={batch} cannot be dealt out over them; nearest: {near}")
    if batch // gpus % parts:
        raise UserError(f"train.accumulate={parts}: must divide the {batch // gpus} places of a GPU")


def setup_of(config: TrainingConfig, gpu: Gpu, assumptions: Assumptions, data: Data) -> Setup:
    """What a plan of `config` goes by."""
    return Setup(gpu, assumptions, data, checkpoint_bytes(config))


def checkpoint_bytes(config: TrainingConfig) -> int:
    """One checkpoint: all weights, and two moments of those that are trained, in fp32."""
    numbers = count_numbers(config, 0)
    return (numbers.trained * 3 + numbers.frozen + numbers.buffers) * FP32
