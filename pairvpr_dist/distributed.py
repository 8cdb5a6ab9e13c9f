"""The process group and collectives, with gradient where training needs it.

Contract: everything here also works in a lone process without a process group, as a world of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pairvpr_dist.errors import UserError

T = TypeVar("T")
NO_TIMEOUT = timedelta(days=365)  # a rank may wait for another's data or checkpoint for hours

_store: dist.Store | None = None


def start(store: dist.Store | None = None) -> torch.device:
    """Join the process group through `store`, or where the environment (MASTER_ADDR, MASTER_PORT) says.

    RANK, WORLD_SIZE and LOCAL_RANK come from the launcher's environment in both cases. Returns this process's device:
    its GPU where there is one (NCCL), else the CPU (gloo).
    """
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    _join(backend, store)

    import deepspeed  # slow to import, and a rank that waits for others need not wait for that first

    # DeepSpeed would compile it at the first start on a CPU, for a sum in inference that training never asks for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def start_on_host(store: dist.Store | None = None) -> None:
    """The same for programs whose processes share files and short messages alone: over gloo, without DeepSpeed."""
    _join("gloo", store)


def _join(backend: str, store: dist.Store | None) -> None:
    global _store
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    me, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    _store = store if store is not None else next(iter(dist.rendezvous("env://", me, world, timeout=NO_TIMEOUT)))[0]
    dist.init_process_group(backend, store=_store, rank=me, world_size=world, timeout=NO_TIMEOUT)


def stop() -> None:
    """Leave the process group, all ranks together."""
    global _store
    if dist.is_initialized():
        barrier()  # gloo aborts a process now and then whose peer goes while it is still leaving
        dist.destroy_process_group()
    _store = None  # its threads end now, not while the interpreter is being taken apart


def messages(name: str) -> dist.Store:
    """A key-value store that all ranks share, with a connection of its own: threads may use it beside training."""
    assert _store is not None, "only in a started process group"
    return dist.PrefixStore(name, _store.clone())


def host_group() -> dist.ProcessGroup | None:
    """A new group over gloo for what does not concern the GPU; every rank must call. None in a lone process."""
    if world_size() == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=NO_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)  # of all ranks, so of this one
    return group


def rank() -> int:
    """Rank of this process, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Concatenate (B, ...) of every rank, in rank order, into (world * B, ...).

    The gradient of a row is the sum of what all ranks give it. A loss over the gathered rows, computed alike on every
    rank, therefore has the exact gradient of the whole batch once ZeRO has averaged over ranks.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def copy_from_rank_0(values: Tensor) -> None:
    """Overwrite a tensor on every rank with that of rank 0."""
    if world_size() > 1:
        dist.broadcast(values, src=0)


def from_rank_0(choose: Callable[[], T]) -> T:
    """What `choose` gives on rank 0, on every rank; a `UserError` that it raises there is raised on every rank."""
    answer: list[Any] = [None]
    if rank() == 0:
        try:
            answer = [choose()]
        except UserError as error:
            answer = [error]
    if world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], UserError):
        raise answer[0]
    return answer[0]


def fetch_rows(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """What this rank wants of the rows of all ranks, with gradient; every rank must call, with equally many rows.

    rows: (B, ...); wanted: (M,) int64, rows of `gather(rows)`, in any order and any number of times. Returns a table
    (T, ...) and places (M,), so that `table[places]` is `gather(rows)[wanted]`. A row travels to a rank at most once.
    Ranks tell each other what they want, so that none has to guess what another one mined.
    """
    if world_size() == 1:
        return rows, wanted
    distinct, places = wanted.unique(return_inverse=True)
    receives = torch.bincount(distinct // len(rows), minlength=world_size())
    sends = torch.empty_like(receives)
    dist.all_to_all_single(sends, receives)
    splits = receives.tolist(), sends.tolist()
    asked = _all_to_all(distinct, splits[1], splits[0])
    table: Tensor = _AllToAll.apply(rows[asked - rank() * len(rows)], *splits)
    return table, places


def _all_to_all(rows: Tensor, receives: list[int], sends: list[int]) -> Tensor:
    """`sends[r]` rows go to rank r, in rank order; `receives[r]` rows come from it."""
    received = rows.new_empty((sum(receives), *rows.shape[1:]))
    dist.all_to_all_single(received, rows.contiguous(), receives, sends)
    return received


class _AllToAll(torch.autograd.Function):
    """`_all_to_all`, and the gradients of the received rows back to where they came from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, receives: list[int], sends: list[int]) -> Tensor:
        ctx.splits = receives, sends
        return _all_to_all(rows, receives, sends)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        receives, sends = ctx.splits
        return _all_to_all(gradient, sends, receives), None, None


class _Gather(torch.autograd.Function):
    """`gather`, and back the own rows of the summed gradient.

    Written out: torch has moved its own form twice since 2.7 and warns about the older ones.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(rows: Tensor) -> Tensor:
    """Concatenate (B, ...) of every rank, in rank order, without gradient."""
    if world_size() == 1:
        return rows
    rows = rows.contiguous()
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The value of every rank, in rank order, on every rank; values are pickled. `group`: a group of all ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group)
    return gathered


def gather_to_rank_0(value: T) -> list[T] | None:
    """The value of every rank, in rank order, on rank 0; None elsewhere. Values are pickled."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, gathered, dst=0)
    return gathered


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, without gradient."""
    values = values.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(values)
    return values
