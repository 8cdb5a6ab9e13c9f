"""Activations of a place of the batch: what is kept from forward to backward, and what the backward needs at its worst.

Contract: read off a step without data (fake tensors: shapes, the kernels' own choice of what they keep, no memory), by
counting the storages that are alive, so that one method holds for every way to run blocks. Depth costs nothing: a step
is taken with one block of each kind, and with one more, since everything is linear in the number of blocks; SUP-VPR's
encoder keeps as many as features are taken of. What compiled blocks keep is said by partitioned.py; beside it they are
taken to need what plain ones need, since kernels that inductor has fused need less than the same operations one by one.
Left out: what losses keep, what kernels need while they run, and what the allocator cannot use. Fake tensors are of the
CPU, whose attention keeps what that of a GPU keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import astuple, dataclass, replace
from functools import cache, partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pairvpr_dist.costs.compilation import compiled_on
from pairvpr_dist.costs.layers import built, hidden_patches
from pairvpr_dist.costs.partitioned import Partitioned
from pairvpr_dist.models.blocks import BlockRunner, recomputed
from pairvpr_dist.models.encoder import preset, spaced_depths
from pairvpr_dist.models.pair_vpr import PairVPR, unit_length
from pairvpr_dist.models.patches import normalised, patchify, take_rows
from pairvpr_dist.settings import PATCH, ModelConfig, Stage1Config, SupVPRConfig, TrainingConfig

FEW, MORE = 2, 4  # places of the steps that are compared
IN_CHUNKS = 2  # chunks of a step that is taken, where `objective.chunks` says any number above 1


@dataclass(frozen=True)
class PlaceBytes:
    """Bytes that one more place of a micro-batch takes on its rank."""

    kept: float  # alive when the forward pass ends
    working: float  # on top of them at the worst moment of the backward pass


@dataclass(frozen=True)
class _Passes:
    """All that a step's activations depend on."""

    model: tuple[Any, ...]  # of ModelConfig
    images: int  # of a place
    hidden: int | None  # patches, in stage 1
    drop: bool
    negatives: int | None  # images of other cities that one looks at, in SUP-VPR
    chunks: int  # in stage 2: 1, or IN_CHUNKS for any more
    checkpointing: str
    compiled: bool
    bf16: bool


def bytes_of_place(config: TrainingConfig, bf16: bool) -> PlaceBytes:
    """What a place takes with this configuration's checkpointing, compilation and chunks.

    `train.compile=auto` is taken as on a GPU where `bf16`, else as on a CPU. Where blocks are computed again they keep
    what checkpointing or chunks say, so compilation changes something only without them.
    """
    compiled = compiled_on(config, gpu=bf16) != "none"
    chunks = 1 if isinstance(config, Stage1Config) else config.objective.chunks
    passes = _Passes(
        model=astuple(config.model),
        images=config.data.images_per_place,
        hidden=hidden_patches(config) if isinstance(config, Stage1Config) else None,
        drop=isinstance(config, Stage1Config) and config.objective.drop_hidden,
        negatives=config.objective.negatives if isinstance(config, SupVPRConfig) else None,
        chunks=min(chunks, IN_CHUNKS),
        checkpointing=config.train.checkpointing,
        compiled=False,
        bf16=bf16,
    )
    plain = _of_place(passes)
    again = passes.checkpointing != "none" or chunks > 1
    kept = _of_place(replace(passes, compiled=True)).kept if compiled and not again else plain.kept
    return PlaceBytes(kept, plain.working * passes.chunks * _largest_chunk(config, chunks))


def _largest_chunk(config: TrainingConfig, chunks: int) -> float:
    """Share of a rank's images that is in the largest of its chunks."""
    images = config.data.places_per_batch * config.data.images_per_place / config.launch.processes
    return ceil(images / chunks) / images


@cache
def _of_place(passes: _Passes) -> PlaceBytes:
    """Bytes of a place at the model's depth, by those of the least depth and of one block more of each kind."""
    model, mode = ModelConfig(*passes.model), FakeTensorMode(allow_non_fake_inputs=True)
    runner = (Partitioned if passes.compiled else BlockRunner)(passes.checkpointing)

    def slopes(depths: tuple[int, int]) -> list[float]:
        few, more = (_step(passes, depths, places, mode, runner) for places in (FEW, MORE))
        return [(m - f) / (MORE - FEW) for f, m in zip(few, more, strict=True)]

    depths = preset(model.encoder).depth - model.frozen_blocks, model.city_blocks or model.decoder_depth
    start = _trained_depths(model), 1
    if passes.compiled:  # a cut counts in the step that makes it: make all that there are
        slopes((start[0] + 1, start[1] + 1))
    least = slopes(start)
    found = list(least)
    for i, depth in enumerate(depths):
        if depth > start[i]:
            more = slopes((start[0] + (i == 0), start[1] + (i == 1)))
            found = [f + (depth - start[i]) * (m - o) for f, m, o in zip(found, more, least, strict=True)]
    kept, *worst = found
    return PlaceBytes(kept, max(0.0, max(worst) - kept))


def _trained_depths(model: ModelConfig) -> int:
    """How many of the depths whose features are taken, the last one at least, come after trained blocks."""
    depths = spaced_depths(preset(model.encoder).depth, model.fused_depths or 1)
    return sum(depth > model.frozen_blocks for depth in depths)


def _step(
    passes: _Passes, depths: tuple[int, int], places: int, mode: FakeTensorMode, runner: BlockRunner
) -> list[int]:
    """Bytes of a step of so many places, with `depths` trained blocks of encoder and of decoder or between cities.

    Returns those that are kept, and the most of each phase of the step: the first one ends in the backward pass of
    what comes after the encoder, the last one with the step. SUP-VPR's encoder has a phase for each of its passes.
    """
    model = deepcopy(built(*passes.model))
    _shorten(model, *depths)
    model.to(torch.bfloat16 if passes.bf16 else torch.float32)
    model.encoder.run_block = runner
    if not model.config.city_blocks:
        model.decoder.run_block = runner
    with mode:
        model.to_empty(device="cpu")  # of no memory either; the kernels of no device keep other things
        for parameter in model.parameters():
            if parameter.requires_grad:  # gradients of weights are not of a place
                parameter.register_post_accumulate_grad_hook(_forget)
        with _Alive() as alive:
            most: list[int] = []

            def watch(tensor: Tensor) -> None:
                tensor.register_hook(lambda gradient: most.append(alive.start_anew()))

            if passes.negatives is None:
                model.decoder.register_forward_pre_hook(lambda _, inputs: watch(inputs[0]))
                loss = _forward(passes, model, places)
            else:
                loss = _forward_supvpr(passes, model, places, passes.negatives, watch)
            kept = alive.now
            loss.backward()
            phases = most[:1] if passes.negatives is None else most
            return [kept, *phases, alive.start_anew()]


def _shorten(model: PairVPR, encoder: int, others: int) -> None:
    """Leave so many trained blocks, and as few frozen ones as there can be: one, or more whose features are taken."""
    vit, config = model.encoder.vit, model.config
    untrained = (config.fused_depths or 1) - _trained_depths(config)
    frozen = max(untrained, min(config.frozen_blocks, 1))
    vit.blocks = nn.Sequential(*vit.blocks[:frozen], *vit.blocks[config.frozen_blocks :][:encoder])
    model.encoder.frozen_blocks = frozen
    if config.city_blocks:
        attention = model.city_head.attention
        attention.norms, attention.blocks = attention.norms[:others], attention.blocks[:others]
    else:
        model.decoder.blocks = model.decoder.blocks[:others]


def _forward(passes: _Passes, model: PairVPR, places: int) -> Tensor:
    """The passes of the objective through its model, over images of no content."""
    size = model.config.image_size
    if passes.hidden is not None:
        image, other = torch.zeros(places, 2, 3, size, size).unbind(dim=1)
        mask = torch.zeros(places, (size // PATCH) ** 2, dtype=torch.bool)
        pixels, rows = model.reconstruct_hidden(image, mask, other, passes.hidden, drop=passes.drop)
        target = normalised(take_rows(patchify(image), rows))
        return (pixels.float() - target).square().mean(dim=(1, 2)).mean()
    images = torch.zeros(places * passes.images, 3, size, size)
    parts = [model.describe(part, recompute=passes.chunks > 1) for part in images.chunk(passes.chunks)]
    dense = parts[0].dense if passes.chunks == 1 else torch.cat([part.dense for part in parts])
    descriptors = torch.cat([part.descriptors for part in parts])
    anchors = torch.arange(len(images)).repeat(2)  # with the hardest positives and the hardest negatives

    def score(dense: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        return model.score_pairs(dense[rows], table[rows])

    run = score if passes.chunks == 1 else partial(recomputed, score)
    scores = torch.cat([run(dense, dense, rows) for rows in anchors.chunk(passes.chunks)])
    return nn.functional.softplus(scores).mean() + descriptors.square().mean()


def _forward_supvpr(
    passes: _Passes, model: PairVPR, places: int, negatives: int, watch: Callable[[Tensor], None]
) -> Tensor:
    """The same of SUP-VPR; `watch` is told of what the encoder's passes end in, where their backward passes begin."""
    size, again = model.config.image_size, passes.chunks > 1
    distorted, plain = (torch.zeros(places * passes.images, 3, size, size) for _ in range(2))
    described = [model.describe(part, recompute=again).descriptors for part in distorted.chunk(passes.chunks)]
    descriptors = torch.cat(described)
    embeddings = torch.cat([model.embed(part, recompute=again) for part in plain.chunk(passes.chunks)])
    watch(descriptors)
    watch(embeddings)
    rows = torch.arange(len(embeddings))[:, None].expand(-1, 1 + negatives)
    asked = model.among_cities(embeddings, embeddings[rows], torch.ones(rows.shape, dtype=torch.bool))
    logits = torch.einsum("ac,akc->ak", asked, unit_length(embeddings)[rows])
    return logits.square().mean() + descriptors.square().mean()


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


class _Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations have made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self._most = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def start_anew(self) -> int:
        """The most bytes since the last call."""
        most, self._most = self._most, self.now
        return most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: object) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self._most = max(self._most, self.now)
