"""What the ranks of a job send each other in a training step: pure functions of the configuration.

Contract: the collectives of one optimizer step under each stage of ZeRO, and those of stage 2's objective, as
DeepSpeed's and torch's calls make them. Sizes are those of messages as DeepSpeed's communication log counts them.
Left out: what is below a thousandth (loss, norm, overflow, flags, metrics).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pairvpr_dist.costs.layers import patches_per_image
from pairvpr_dist.costs.memory import BF16, FP32, count_numbers
from pairvpr_dist.costs.zero import BUCKET, SMALL
from pairvpr_dist.models.encoder import preset
from pairvpr_dist.settings import Stage1Config, Stage2Config, TrainingConfig

PASSED_ON = {"all_reduce": 2.0}  # times that a ring passes a message on; all others once
DEFAULT_ALLREDUCE = 500_000_000  # numbers in one of the engine's own reductions, without ZeRO


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in one phase of a step."""

    kind: str  # all_reduce, reduce_scatter, reduce, all_gather, broadcast or all_to_all
    phase: str  # forward, backward or update
    bytes: float  # messages of one optimizer step, summed; of a gather or scatter the whole of it
    calls: int

    def wire(self, world: int) -> float:
        """Bytes that one rank sends, by ring algorithms (Thakur et al. 2005)."""
        return PASSED_ON.get(self.kind, 1.0) * (world - 1) / world * self.bytes


def step_traffic(config: TrainingConfig, bf16: bool) -> list[Exchange]:
    """The exchanges of one optimizer step; none in a lone process."""
    if config.launch.processes == 1:
        return []
    zero = _zero_3(config, bf16) if config.train.zero_stage == 3 else _below_zero_3(config, bf16)
    return zero if isinstance(config, Stage1Config) else zero + _objective(config, bf16)


def _below_zero_3(config: TrainingConfig, bf16: bool) -> list[Exchange]:
    """Gradients are all-reduced, in fp32; of what a rank has updated all get a copy."""
    numbers = count_numbers(config, SMALL)
    zero = config.train.zero_stage
    times = config.train.accumulate if zero == 2 else 1  # ZeRO-2 keeps no whole gradient between parts of a batch
    bucket = BUCKET if zero else DEFAULT_ALLREDUCE
    calls = times * math.ceil(numbers.trained / bucket)
    exchanges = [Exchange("all_reduce", "backward", times * numbers.trained * FP32, calls)]
    if zero:
        exchanges.append(Exchange("all_gather", "update", numbers.trained * _width(bf16), 1))
    return exchanges


def _zero_3(config: TrainingConfig, bf16: bool) -> list[Exchange]:
    """Weights are gathered for each pass through them, and gradients scattered, in fp32."""
    numbers = count_numbers(config, SMALL)
    parts, large = config.train.accumulate, numbers.trained + numbers.frozen - numbers.small
    calls = parts * math.ceil(large / BUCKET)
    return [
        Exchange("all_gather", "forward", parts * large * _width(bf16), calls),
        Exchange("all_gather", "backward", parts * large * _width(bf16), calls),
        Exchange("reduce_scatter", "backward", parts * numbers.trained * FP32, calls),
    ]


def _objective(config: Stage2Config, bf16: bool) -> list[Exchange]:
    """Descriptors of all, in fp32, and dense features of the partners that other ranks have."""
    model, world = config.model, config.launch.processes
    images = config.data.places_per_batch * config.data.images_per_place
    descriptors = images * model.descriptor_dim * FP32
    dense = patches_per_image(model) * preset(model.encoder).dim * _width(bf16)
    fetched = _distinct_partners(images // world, world) * dense
    return [
        Exchange("all_gather", "forward", descriptors, 1),
        Exchange("all_to_all", "forward", fetched, 1),
        Exchange("all_to_all", "backward", fetched, 1),
        Exchange("all_reduce", "backward", descriptors, 1),
    ]


def _distinct_partners(own: int, world: int) -> float:
    """Images that a rank of `own` anchors wants, itself among those asked.

    A positive is of the anchor's place, so the rank's own, and with few images a place all are some anchor's. A
    negative may be any image: of n drawn from m, m (1 - (1 - 1/m)^n) are distinct.
    """
    everywhere = own * world
    negatives = everywhere * (1 - (1 - 1 / everywhere) ** own)
    return own * 0.7 + negatives * (1 - 0.7 / world)


def _width(bf16: bool) -> int:
    return BF16 if bf16 else FP32
