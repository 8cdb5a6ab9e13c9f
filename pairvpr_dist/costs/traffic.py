"""What the ranks of a job send each other in a training step: pure functions of the configuration.

Contract: the collectives of one optimizer step under each stage of ZeRO, and those of stage 2's objective, as
DeepSpeed's and torch's calls make them. Sizes are those of messages as DeepSpeed's communication log counts them, but
of a gather the whole, of which the log has a rank's own part. Left out: what is below a thousandth (loss, norm,
overflow, flags, metrics, sizes of an exchange, padding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pairvpr_dist.costs.layers import layers, patches_per_image
from pairvpr_dist.costs.memory import BF16, FP32, count_numbers
from pairvpr_dist.costs.zero import BUCKET, SMALL, WHOLE, gathered_again, gathered_forward
from pairvpr_dist.models.encoder import preset
from pairvpr_dist.settings import Stage1Config, Stage2Config, SupVPRConfig, TrainingConfig

LABEL, FLAG = 8, 1  # bytes of an image's place or city, and of whether it counts
PASSED_ON = {"all_reduce": 2.0}  # times that a ring passes a message on; all others once


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in one phase of a step."""

    kind: str  # all_reduce, reduce_scatter, reduce, all_gather, broadcast or all_to_all
    phase: str  # forward, backward or update
    bytes: float  # messages of one optimizer step, summed
    calls: int
    blocking: bool = False  # the objective waits for it, so that nothing is computed meanwhile

    def wire(self, world: int) -> float:
        """Bytes that one rank sends, by ring algorithms (Thakur et al. 2005)."""
        return PASSED_ON.get(self.kind, 1.0) * (world - 1) / world * self.bytes


def step_traffic(config: TrainingConfig, bf16: bool) -> list[Exchange]:
    """The exchanges of one optimizer step; none in a lone process."""
    if config.launch.processes == 1:
        return []
    zero = _zero_3(config, bf16) if config.train.zero_stage == 3 else _below_zero_3(config, bf16)
    if isinstance(config, Stage1Config):
        return zero
    own = _city_recognition(config, bf16) if isinstance(config, SupVPRConfig) else _place_recognition(config, bf16)
    return zero + [replace(exchange, blocking=True) for exchange in own]


def _below_zero_3(config: TrainingConfig, bf16: bool) -> list[Exchange]:
    """Gradients are all-reduced, in fp32, also where only one rank needs them; all get what a rank has updated."""
    numbers = count_numbers(config, SMALL)
    zero = config.train.zero_stage
    times = config.train.accumulate if zero == 2 else 1  # ZeRO-2 keeps no whole gradient between parts of a batch
    calls = times * math.ceil(numbers.trained / (BUCKET if zero else WHOLE))
    exchanges = [Exchange("all_reduce", "backward", times * numbers.trained * FP32, calls)]
    if zero:
        exchanges.append(Exchange("all_gather", "update", numbers.trained * _width(bf16), 1))
    return exchanges


def _zero_3(config: TrainingConfig, bf16: bool) -> list[Exchange]:
    """Weights are gathered, again in the backward pass where they were not kept, and gradients scattered, in fp32."""
    numbers, parts, width = count_numbers(config, SMALL), config.train.accumulate, _width(bf16)
    divided = 1 - numbers.small / (numbers.trained + numbers.frozen)
    weights = divided * sum(times * layer.parameters for layer, times in gathered_forward(layers(config)))
    again = divided * sum(layer.parameters for layer, again in gathered_again(layers(config)) if again)
    forward, backward, scattered = (parts * math.ceil(n / BUCKET) for n in (weights, again, numbers.trained))
    found = [
        Exchange("all_gather", "forward", parts * weights * width, forward),
        Exchange("all_gather", "backward", parts * again * width, backward),
        Exchange("reduce_scatter", "backward", parts * numbers.trained * FP32, scattered),
        Exchange("all_gather", "update", numbers.small * width, 1),
    ]
    return [exchange for exchange in found if exchange.bytes]


def _place_recognition(config: Stage2Config, bf16: bool) -> list[Exchange]:
    """Descriptors of all, in fp32, and dense features of the partners that other ranks have."""
    model, world, images = config.model, config.launch.processes, _images(config)
    dense = patches_per_image(model) * preset(model.encoder).dim * _width(bf16)
    fetched = _distinct_partners(images / world, world, config.data.images_per_place) * dense
    return [
        *_with_gradient(images * model.descriptor_dim * FP32),
        Exchange("all_gather", "forward", images * LABEL, 1),
        Exchange("all_to_all", "forward", fetched, 1),
        Exchange("all_to_all", "backward", fetched, 1),
    ]


def _city_recognition(config: SupVPRConfig, bf16: bool) -> list[Exchange]:
    """Descriptors of all, in fp32, their embeddings, places and cities, and which of them count."""
    images = _images(config)
    return [
        *_with_gradient(images * config.model.descriptor_dim * FP32),
        *_with_gradient(images * preset(config.model.encoder).dim * _width(bf16)),
        Exchange("all_gather", "forward", images * (LABEL + LABEL + FLAG), 3),
    ]


def _with_gradient(size: float) -> list[Exchange]:
    """Rows of all ranks, `size` bytes, and the sum of the gradients that all ranks give them."""
    return [Exchange("all_gather", "forward", size, 1), Exchange("all_reduce", "backward", size, 1)]


def _images(config: Stage2Config) -> int:
    return config.data.places_per_batch * config.data.images_per_place


def _distinct_partners(own: float, world: int, of_place: int) -> float:
    """Images that a rank of `own` anchors wants, each once; what it has itself is asked for as well.

    Partners are taken to be drawn at random: positives among the other images of the place, which the rank has,
    negatives among all. In training many anchors can share a hard negative, so this is the upper end.
    """
    positive = 1 - ((of_place - 2) / (of_place - 1)) ** (of_place - 1)  # an image is that of some anchor
    negative = 1 - (1 - 1 / (own * world)) ** own
    return own * (1 - (1 - positive) * (1 - negative)) + own * (world - 1) * negative


def _width(bf16: bool) -> int:
    return BF16 if bf16 else FP32
