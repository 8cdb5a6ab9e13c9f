"""Activations of a place of the batch: what is kept from forward to backward, and what the backward needs at its worst.

Contract: read off a step without data (fake tensors: shapes, the kernels' own choice of what they keep, no memory), by
counting the storages that are alive, so that one method holds for every way to run blocks. Depth costs nothing: a step
is taken with one block of each kind, and with one more, since everything is linear in the number of blocks. What
compiled blocks keep is read off a cut into forward and backward like torch.compile's (AOTAutograd, its min-cut
partitioner, inductor's decompositions); beside it they are taken to need what plain ones need, since kernels that
inductor has fused need less than the same operations one by one. Left out: what kernels need while they run, and what
the allocator cannot use. Fake tensors are of the CPU, whose attention keeps what that of a GPU keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from functorch.compile import aot_function, min_cut_rematerialization_partition
from torch import Tensor, fx, nn
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import stateless
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pairvpr_dist.costs.layers import hidden_patches
from pairvpr_dist.models.blocks import BlockRunner, recomputed
from pairvpr_dist.models.encoder import preset
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.models.patches import normalised, patchify, take_rows
from pairvpr_dist.settings import PATCH, ModelConfig, Stage1Config, TrainingConfig

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
    chunks: int  # in stage 2: 1, or IN_CHUNKS for any more
    checkpointing: str
    compiled: bool
    bf16: bool


def bytes_of_place(config: TrainingConfig, bf16: bool) -> PlaceBytes:
    """What a place takes with this configuration's checkpointing, compilation and chunks.

    `train.compile=auto` is taken as on a GPU where `bf16`, else as on a CPU. A compiled block keeps what checkpointing
    says, so compilation changes something only without it.
    """
    auto = bf16 and config.train.zero_stage < 3
    compiled = {"auto": auto, "none": False}.get(config.train.compile, True)
    chunks = 1 if isinstance(config, Stage1Config) else config.objective.chunks
    passes = _Passes(
        model=astuple(config.model),
        images=config.data.images_per_place,
        hidden=hidden_patches(config) if isinstance(config, Stage1Config) else None,
        drop=isinstance(config, Stage1Config) and config.objective.drop_hidden,
        chunks=min(chunks, IN_CHUNKS),
        checkpointing=config.train.checkpointing,
        compiled=False,
        bf16=bf16,
    )
    plain = _of_place(passes)
    kept = _of_place(replace(passes, compiled=True)).kept if compiled and passes.checkpointing == "none" else plain.kept
    return PlaceBytes(kept, plain.working * passes.chunks / chunks)  # of one chunk at a time


@cache
def _of_place(passes: _Passes) -> PlaceBytes:
    """Bytes of a place at the model's depth, by those of one and of two blocks of each kind."""
    model, mode = ModelConfig(*passes.model), FakeTensorMode(allow_non_fake_inputs=True)
    runner = (_Partitioned if passes.compiled else BlockRunner)(passes.checkpointing)

    def slopes(depths: tuple[int, int]) -> list[float]:
        few, more = (_step(passes, depths, places, mode, runner) for places in (FEW, MORE))
        return [(m - f) / (MORE - FEW) for f, m in zip(few, more, strict=True)]

    depths = preset(model.encoder).depth - model.frozen_blocks, model.decoder_depth
    start = min(depths[0], 1), 1
    one = slopes(start)
    found = list(one)
    for i, depth in enumerate(depths):
        if depth > 1:
            more = slopes((start[0] + (i == 0), start[1] + (i == 1)))
            found = [f + (depth - 1) * (m - o) for f, m, o in zip(found, more, one, strict=True)]
    kept, *worst = found
    return PlaceBytes(kept, max(0.0, max(worst) - kept))


def _step(
    passes: _Passes, depths: tuple[int, int], places: int, mode: FakeTensorMode, runner: BlockRunner
) -> tuple[int, int, int]:
    """Bytes of a step of so many places, with `depths` trained blocks of encoder and decoder.

    Returns those that are kept, the most until the decoder's backward pass ends, and the most of the encoder's.
    """
    with torch.device("meta"):
        model = PairVPR(ModelConfig(*passes.model))
    _shorten(model, *depths)
    model.to(torch.bfloat16 if passes.bf16 else torch.float32)
    model.encoder.run_block = model.decoder.run_block = runner
    with mode:
        model.to_empty(device="cpu")  # of no memory either; the kernels of no device keep other things
        for parameter in model.parameters():
            if parameter.requires_grad:  # gradients of weights are not of a place
                parameter.register_post_accumulate_grad_hook(_forget)
        with _Alive() as alive:
            decoded: list[int] = []

            def watch(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
                inputs[0].register_hook(lambda gradient: decoded.append(alive.start_anew()))

            model.decoder.register_forward_pre_hook(watch)
            loss = _forward(passes, model, places)
            kept = alive.now
            loss.backward()
            return kept, decoded[0], alive.start_anew()


def _shorten(model: PairVPR, encoder: int, decoder: int) -> None:
    """Leave one frozen block, where there are any, and so many trained ones."""
    vit, frozen = model.encoder.vit, min(model.encoder.frozen_blocks, 1)
    vit.blocks = nn.Sequential(*vit.blocks[:frozen], *vit.blocks[model.encoder.frozen_blocks :][:encoder])
    model.encoder.frozen_blocks = frozen
    model.decoder.blocks = model.decoder.blocks[:decoder]


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


def _interpreted(graph: fx.GraphModule, inputs: Sequence[object]) -> Callable[[list[object]], Any]:
    """A compiler that runs the graph op by op, and lets go of arguments and results where they were used last."""

    def run(arguments: list[object]) -> Any:
        return fx.Interpreter(graph).boxed_run(arguments)

    run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd then gives up its hold on the arguments
    return run


class _Partitioned(BlockRunner):
    """Runs blocks cut into forward and backward as torch.compile cuts them; blocks of one kind share the cut."""

    def __init__(self, checkpointing: str) -> None:
        super().__init__(checkpointing)
        self._cuts: dict[tuple[object, ...], Callable[..., Tensor]] = {}

    def __call__(self, block: nn.Module, *tokens: Tensor) -> Tensor:
        """`block(*tokens)`."""
        if not torch.is_grad_enabled():  # frozen: nothing is kept
            return super().__call__(block, *tokens)
        kind = type(block), *((t.shape, t.requires_grad) for t in tokens)
        if kind not in self._cuts:
            self._cuts[kind] = self._cut(block)
        return self._cuts[kind](tuple(block.parameters()), *tokens)

    def _cut(self, block: nn.Module) -> Callable[..., Tensor]:
        names, run = [name for name, _ in block.named_parameters()], super().__call__

        def function(weights: tuple[Tensor, ...], *tokens: Tensor) -> Tensor:
            with stateless._reparametrize_module(block, dict(zip(names, weights, strict=True))):
                return run(block, *tokens)

        cut: Callable[..., Tensor] = aot_function(
            function,
            fw_compiler=_interpreted,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )
        return cut
