"""Attention by each of torch's backends, forced, at the shapes of the model.

Contract: bf16, random queries, keys and values. Operations are those of the two products forward, and of training three
times as many, as costs/flops.py counts them. The deviation is the largest of a result from `MATH` in fp32 on the
same numbers. `(own choice)` is what torch takes when nothing is forced, as the model leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.part import Cell, Table, device, open_table, seconds_of
from pairvpr_dist.errors import one_line

TERA = 1e12
TRAINED = 3  # forward, and the gradients of both factors
COMPARED = 8  # images whose results are compared with those in fp32
OWN_CHOICE = "(own choice)"
FORCED = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


class Shape(NamedTuple):
    """Attention of an image or a pair; heads are 64 wide."""

    name: str
    heads: int
    queries: int
    keys: int


SHAPES = (
    Shape("ViT-G encoder, stage 1", 24, 261, 261),
    Shape("decoder self and cross, stage 1", 12, 256, 256),
    Shape("ViT-G encoder, stage 2", 24, 534, 534),
    Shape("decoder self, stage 2", 12, 530, 530),
    Shape("decoder cross, stage 2", 12, 530, 529),
)
SMALL = (Shape("small self", 2, 21, 21), Shape("small cross", 2, 21, 20))


def main() -> None:
    """The program."""
    table = open_table()
    batch, at_least = (2, 0.01) if table.small else (128, 0.1)
    for shape in SMALL if table.small else SHAPES:
        measure(table, shape, batch, at_least)


def measure(table: Table, shape: Shape, batch: int, at_least: float) -> None:
    """The rows of one shape."""
    q, k, v = inputs(shape, batch)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        exact = F.scaled_dot_product_attention(*few(q.float(), k.float(), v.float()))
    operations = 4.0 * batch * shape.heads * shape.queries * shape.keys * q.shape[-1]
    for backend, forced in backends():
        row: dict[str, Cell] = {"shape": shape.name, "backend": backend}
        with forced:
            try:
                row |= timed(q, k, v, operations, at_least)
                with torch.no_grad():
                    out = F.scaled_dot_product_attention(*few(q, k, v))
                row["deviation"] = float((out.float() - exact).abs().max())
                row["note"] = ""
            except RuntimeError as error:  # a backend that this device or shape has not, or no memory
                row["note"] = one_line(str(error).splitlines()[0])
        table.add(row)


def inputs(shape: Shape, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, laid out as the projections of a block give them: heads within a token."""
    generator = torch.Generator(device()).manual_seed(0)

    def one(tokens: int) -> Tensor:
        flat = torch.randn(batch, tokens, shape.heads, 64, device=device(), generator=generator)
        return flat.to(torch.bfloat16).transpose(1, 2).requires_grad_()

    return one(shape.queries), one(shape.keys), one(shape.keys)


def few(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the images that are compared."""
    return q[:COMPARED], k[:COMPARED], v[:COMPARED]


def backends() -> Iterator[tuple[str, AbstractContextManager[None]]]:
    """Each backend by its name, and the block in which it alone is allowed."""
    for name in FORCED:
        yield name, sdpa_kernel(getattr(SDPBackend, name))
    yield OWN_CHOICE, nullcontext()


def timed(q: Tensor, k: Tensor, v: Tensor, operations: float, at_least: float) -> dict[str, Cell]:
    """Milliseconds and rates, forward alone and with the backward pass."""
    gradient = torch.ones_like(q)

    def forward() -> None:
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v)

    def both() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), gradient)

    once, trained = seconds_of(forward, at_least), seconds_of(both, at_least)
    return {
        "forward, ms": 1e3 * once,
        "forward, TFLOP/s": operations / once / TERA,
        "forward and backward, ms": 1e3 * trained,
        "both, TFLOP/s": TRAINED * operations / trained / TERA,
    }


if __name__ == "__main__":
    main()
