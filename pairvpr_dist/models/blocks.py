"""How transformer blocks are run: as they are, compiled, or with activations computed again in the backward pass.

Contract: the numbers are those of the plain block within rounding, and bit for bit without compilation. Nothing of it
is in the model's parameters or their names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
# What selective checkpointing keeps: the results of products, which are dear to compute. Norms, activation functions
# and sums, which are not, are computed again.
PRODUCTS = [
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
]
RECOMPILE_LIMIT = 32
MODES = {"blocks": None, "graphs": "reduce-overhead"}  # of torch.compile


def recomputed(function: Callable[..., Any], *inputs: Tensor, context_fn: Any = None) -> Any:
    """`function(*inputs)`, of which only the inputs are held for the backward pass, or what `context_fn` says.

    Not re-entrant, so that a parameter's gradient is whole once a backward pass, as ZeRO wants it. It stops early, as
    is torch's default: ZeRO-3 would take away the weights of the last module, whose gradient comes first, at its end.
    """
    contexts = {} if context_fn is None else {"context_fn": context_fn}
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **contexts)


class BlockRunner:
    """Runs blocks by one of `CHECKPOINTING` and `COMPILE` of settings.py, `auto` excepted."""

    def __init__(self, checkpointing: str = "none", compiled: str = "none") -> None:
        ways: dict[str, Callable[..., Tensor]] = {"none": _plainly, "selective": _selectively, "full": recomputed}
        run = ways[checkpointing]
        # One function for all blocks, which takes the block as an argument, so that it is compiled once for all.
        if compiled != "none":
            import torch._dynamo  # two seconds, for nothing where blocks are not compiled

            # Frozen and trained blocks, the first one trained, encoder and decoder, and chunks that are not equally
            # large are compiled each by itself; after 8 torch would go on without compilation.
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            run = torch.compile(run, mode=MODES[compiled], dynamic=False)
        self._run = run

    def __call__(self, block: nn.Module, *tokens: Tensor) -> Tensor:
        """`block(*tokens)`."""
        return self._run(block, *tokens)


def _plainly(block: nn.Module, *tokens: Tensor) -> Tensor:
    out: Tensor = block(*tokens)
    return out


def _selectively(block: nn.Module, *tokens: Tensor) -> Tensor:
    return recomputed(block, *tokens, context_fn=partial(create_selective_checkpoint_contexts, PRODUCTS))
