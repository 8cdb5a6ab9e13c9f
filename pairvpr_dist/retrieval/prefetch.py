"""Projected features read ahead of the computation, on their way to the device.

Contract: batches come in the order asked for; a thread reads the next `AHEAD` meanwhile, and its error is raised where
its batch would have come. On a GPU they are read into page-locked memory and copied beside the computation. A batch is
valid until the next one is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pairvpr_dist.retrieval.describe import DenseFeatures

AHEAD = 2  # batches read while one is computed with


class Wanted(NamedTuple):
    """A batch to read, and which pairs it is for."""

    features: DenseFeatures
    rows: np.ndarray  # (n,) of `features`
    query: int  # number of the query
    columns: slice | None  # its candidates; None: the query itself


def prefetched(
    wanted: Iterable[Wanted], most: int, shape: tuple[int, int], device: torch.device
) -> Iterator[tuple[Wanted, Tensor]]:
    """Each of `wanted` with its features (n, N, D) fp16 on `device`; n is at most `most`, and `shape` is (N, D).

    `wanted` is drawn `AHEAD` items before their batches are given.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    free = deque(_Buffer(most, shape, copying) for _ in range(AHEAD + 1))
    reading: deque[tuple[Wanted, _Buffer, Future[Tensor]]] = deque()
    # What is not stored is computed again in the thread, and each thread has a current GPU of its own.
    thread = ThreadPoolExecutor(1, "features")
    if copying is not None:
        thread.submit(torch.cuda.set_device, copying.device)
    batches = iter(wanted)
    try:
        while True:
            for batch in batches:
                buffer = free.popleft()
                reading.append((batch, buffer, thread.submit(buffer.fill, batch)))
                if not free:
                    break
            if not reading:
                return
            batch, buffer, future = reading.popleft()
            yield batch, buffer.on_device(future.result())
            free.append(buffer)
    finally:
        thread.shutdown(cancel_futures=True)


class _Buffer:
    """Host memory of one batch and, where there is a stream for it, the copy to the stream's device."""

    def __init__(self, most: int, shape: tuple[int, int], copying: torch.cuda.Stream | None) -> None:
        self.host = torch.empty(most, *shape, dtype=torch.float16, pin_memory=copying is not None)
        self.copying = copying
        self.copied = torch.cuda.Event() if copying is not None else None

    def fill(self, batch: Wanted) -> Tensor:
        """Read a batch, in the thread, once the one before is on the device."""
        if self.copied is not None:
            self.copied.synchronize()
        return batch.features.read(batch.rows, self.host[: len(batch.rows)])

    def on_device(self, host: Tensor) -> Tensor:
        """The batch where it is computed with: the computation waits for the copy, the program does not."""
        if self.copying is None or self.copied is None:
            return host
        with torch.cuda.stream(self.copying):
            batch = host.to(self.copying.device, non_blocking=True)
            self.copied.record()
        here = torch.cuda.current_stream(self.copying.device)
        here.wait_event(self.copied)
        batch.record_stream(here)
        return batch
