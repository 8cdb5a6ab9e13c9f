"""Collectives in a lone process; those of several are in tests/objectives."""

from __future__ import annotations

import torch

from pairvpr_dist.distributed import barrier, gather, gather_with_gradient, rank, sum_over_ranks, world_size


def test_alone_is_a_world_of_one() -> None:
    assert (rank(), world_size()) == (0, 1)
    barrier()
    rows = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(gather(rows), rows)
    (gather_with_gradient(rows) * 3).sum().backward()
    assert torch.equal(rows.grad, torch.full((3, 2), 3.0))  # type: ignore[arg-type]


def test_a_sum_over_ranks_is_a_copy() -> None:
    values = torch.ones(2)
    total = sum_over_ranks(values)
    total += 1
    assert torch.equal(values, torch.ones(2))
