"""Work on all cores with results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Tag = TypeVar("Tag")
Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items per worker that are worked on before their turn; bounds the memory that waiting results take


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(
    function: Callable[[Item], Result], items: Iterable[tuple[Tag, Item]], workers: int
) -> Iterator[tuple[Tag, Result]]:
    """`(tag, function(item))` for each `(tag, item)`, in this order, whatever the number of worker processes.

    `items` is drawn lazily; `function`, items and results travel by pickle, tags stay here. One worker or none: no
    other process is started.
    """
    if workers <= 1:
        for tag, item in items:
            yield tag, function(item)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        waiting: deque[tuple[Tag, Future[Result]]] = deque()
        for tag, item in items:
            waiting.append((tag, pool.submit(function, item)))
            if len(waiting) >= AHEAD * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for tag, future in waiting:
            yield tag, future.result()
