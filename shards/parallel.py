"""Work on all cores: with results in order, or with a progress bar that moves within an item."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from tqdm import tqdm

from pairvpr_dist.errors import UserError

Tag = TypeVar("Tag")
Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items per worker that are worked on before their turn; bounds the memory that waiting results take
LOOK = 0.5  # seconds between two looks at the workers' progress

_done: Any = None  # in a worker process: the counter that it shares with the others


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


def on_all_cores(
    function: Callable[[Item, Callable[[int], None]], None],
    items: Sequence[Item],
    workers: int,
    total: int,
    description: str,
    unit: str,
) -> None:
    """Call `function(item, tick)` for every item; `tick(n)` moves the bar of `total` units by n.

    The first error ends the work and is raised here. Raises `UserError` when a worker process is killed.
    """
    with tqdm(total=total, desc=description, unit=unit, disable=None) as bar:
        if min(workers, len(items)) <= 1:
            for item in items:
                function(item, lambda count: bar.update(count) and None)
            return
        context = get_context("forkserver")
        counter = context.Value("q", 0)
        with ProcessPoolExecutor(min(workers, len(items)), context, _share, (counter,)) as pool:
            try:
                waiting = {pool.submit(_call, function, item) for item in items}
                while waiting:
                    done, waiting = wait(waiting, LOOK, FIRST_COMPLETED)
                    bar.update(counter.value - bar.n)
                    for future in done:
                        future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed, for lack of memory perhaps; the same command goes on from here, "
                    "with fewer --workers if it happens again"
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _share(counter: Any) -> None:
    global _done
    _done = counter


def _call(function: Callable[[Item, Callable[[int], None]], None], item: Item) -> None:
    function(item, _count)


def _count(count: int) -> None:
    with _done.get_lock():
        _done.value += count
