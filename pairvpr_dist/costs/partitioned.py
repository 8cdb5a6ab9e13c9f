"""Blocks cut into forward and backward as torch.compile cuts them, without compiling anything.

Contract: AOTAutograd, its min-cut partitioner and inductor's decompositions say what a compiled block keeps for its
backward pass; its operations are then run one by one, also on fake tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from functorch.compile import aot_function, min_cut_rematerialization_partition
from torch import Tensor, fx, nn
from torch._inductor.decomposition import select_decomp_table
from torch.nn.utils import stateless

from pairvpr_dist.models.blocks import BlockRunner


def _interpreted(graph: fx.GraphModule, inputs: Sequence[object]) -> Callable[[list[object]], Any]:
    """A compiler that runs the graph op by op, and lets go of arguments and results where they were used last."""

    def run(arguments: list[object]) -> Any:
        return fx.Interpreter(graph).boxed_run(arguments)

    run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd then gives up its hold on the arguments
    return run


class Partitioned(BlockRunner):
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
