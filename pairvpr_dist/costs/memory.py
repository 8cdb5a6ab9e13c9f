"""Memory of a training process: model state under ZeRO, and activations of a place. Pure functions.

Contract: bytes of one rank. Model state is what DeepSpeed holds at the end of the backward; activations are what
autograd keeps between forward and backward, read off a forward without data (fake tensors: shapes, the kernels' own
choice of what they keep, no memory). Left out: what kernels need while they run, and what the allocator cannot use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from pairvpr_dist.costs.zero import BUCKET, SMALL
from pairvpr_dist.models.blocks import recomputed
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import PATCH, Stage1Config, TrainingConfig

FP32, BF16 = 4, 2  # bytes of a number
MOMENTS = 2  # of AdamW


@dataclass(frozen=True)
class Numbers:
    """How many numbers an objective's model has."""

    trained: int
    frozen: int
    buffers: int
    small: int  # of both, in parameters that ZeRO-3 also keeps whole on every rank


@dataclass(frozen=True)
class ModelState:
    """Bytes that one rank holds, whatever its batch."""

    parameters: float
    gradients: float
    optimizer: float  # fp32 masters, where there are any, and moments
    buckets: float  # in which gradients are averaged

    @property
    def total(self) -> float:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.buckets


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one rank at its worst moment."""

    state: ModelState
    activations: float  # kept from forward to backward
    working: float  # what the backward pass needs beside them

    @property
    def total(self) -> float:
        """All of it."""
        return self.state.total + self.activations + self.working


def process_memory(config: TrainingConfig, bf16: bool, overlap: bool) -> ProcessMemory:
    """What each of `launch.processes` ranks needs for a step; `overlap`: DeepSpeed's overlap_comm, on with a GPU."""
    world = config.launch.processes
    places = config.data.places_per_batch / world / config.train.accumulate
    state = model_state(count_numbers(config, SMALL), config.train.zero_stage, world, bf16, BUCKET, overlap)
    return ProcessMemory(state, places * activation_bytes_per_place(config, bf16), 0.0)


def count_numbers(config: TrainingConfig, small_below: int) -> Numbers:
    """The numbers of a stage's model; `small_below`: ZeRO-3's persistence threshold."""
    model = _shapes(config)
    parameters = list(model.parameters())
    return Numbers(
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        buffers=sum(b.numel() for b in model.buffers()),
        small=sum(p.numel() for p in parameters if p.numel() < small_below),
    )


def model_state(numbers: Numbers, zero_stage: int, world: int, bf16: bool, bucket: int, overlap: bool) -> ModelState:
    """What a rank of `world` holds; `bucket`: numbers in one, `overlap`: there are two of them."""
    width = BF16 if bf16 else FP32
    masters = bf16 or zero_stage > 0  # in fp32 without ZeRO, AdamW updates the parameters themselves
    share = 1 / world
    whole = numbers.trained + numbers.frozen
    small = numbers.small if world > 1 else 0  # alone, a rank's part is the whole
    held = whole * share + small if zero_stage == 3 else whole
    divided_gradients = share if zero_stage > 1 else 1.0  # ZeRO-1 divides them when all are there
    divided = share if zero_stage > 0 else 1.0
    buckets = {0: 0, 1: width, 2: width, 3: FP32}[zero_stage] * bucket * (2 if overlap and zero_stage in (1, 2) else 1)
    return ModelState(
        parameters=held * width + numbers.buffers * FP32,
        gradients=numbers.trained * width * divided_gradients,
        optimizer=numbers.trained * FP32 * (masters + MOMENTS) * divided,
        buckets=buckets,
    )


def activation_bytes_per_place(config: TrainingConfig, bf16: bool, recompute: bool = False) -> float:
    """What one more place of the batch keeps on its rank between forward and backward.

    `recompute`: what is kept of it where `objective.chunks` lets the backward pass compute activations again.
    """
    model = _shapes(config).to(torch.bfloat16 if bf16 else torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")  # of no memory either; the kernels of no device keep other things
        few, more = (saved_bytes(config, model, places, recompute) for places in (2, 4))
    return (more - few) / 2


def _shapes(config: TrainingConfig) -> PairVPR:
    """The model of a stage without memory, its untrained parts frozen."""
    with torch.device("meta"):
        return build_objective(config, PairVPR(config.model), []).model


def saved_bytes(config: TrainingConfig, model: PairVPR, places: int, recompute: bool = False) -> int:
    """Bytes that autograd keeps of a forward of `places` places, beside the model's own; each storage once."""
    own = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[StorageWeakRef, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in own:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _forward(config, model, places, recompute)
    del loss
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _forward(config: TrainingConfig, model: PairVPR, places: int, recompute: bool) -> Tensor:
    """The passes of the objective through its model, over images of no content."""
    size, views = config.model.image_size, config.data.images_per_place
    if isinstance(config, Stage1Config):
        image, other = torch.zeros(2, places, 3, size, size)
        mask = torch.zeros(places, (size // PATCH) ** 2, dtype=torch.bool)
        hidden, drop = int(config.objective.mask_ratio * mask.shape[1]), config.objective.drop_hidden
        return model.reconstruct_hidden(image, mask, other, hidden, drop=drop)[0].float().square().mean()
    described = model.describe(torch.zeros(places * views, 3, size, size), recompute=recompute)
    anchors = torch.arange(places * views).repeat(2)  # each with its hardest positive and its hardest negative

    def score(dense: Tensor) -> Tensor:
        return model.score_pairs(dense[anchors], dense[anchors.flip(0)])

    scores = recomputed(score, described.dense) if recompute else score(described.dense)
    return nn.functional.softplus(scores).mean() + described.descriptors.square().mean()
