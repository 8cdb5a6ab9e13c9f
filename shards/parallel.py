"""Work on all cores: with results in order, or with a progress bar that moves within an item."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from tqdm import tqdm

from pairvpr_dist.errors import UserError

Tag = TypeVar("Tag")
Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items per worker that are worked on before their turn; bounds the memory that waiting results take
CONTEXT = get_context("forkserver")
LOOK = 0.5  # seconds between two looks at the workers' progress

_done: Any = None  # in a worker process: the counts that it shares with the others
Tick = Callable[[int, int], None]


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
    with _pool(workers, _belong_to_parent) as pool:
        waiting: deque[tuple[Tag, Future[Result]]] = deque()
        for tag, item in items:
            waiting.append((tag, pool.submit(function, item)))
            if len(waiting) >= AHEAD * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for tag, future in waiting:
            yield tag, future.result()


def on_all_cores(
    function: Callable[[Item, Tick], None],
    items: Sequence[Item],
    workers: int,
    total: int,
    description: str,
    unit: str,
) -> None:
    """Call `function(item, tick)` for every item; `tick(n, size)` moves the bar of `total` units by n, of size bytes.

    The first error ends the work and is raised here. Raises `UserError` when a worker process is killed.
    """
    with tqdm(total=total, desc=description, unit=unit, disable=None) as bar:
        if min(workers, len(items)) <= 1:
            counts = [0, 0]

            def tick(count: int, size: int) -> None:
                counts[0] += count
                counts[1] += size
                _show(bar, counts)

            for item in items:
                function(item, tick)
            return
        shared = CONTEXT.Array("q", 2)
        with _pool(min(workers, len(items)), _share, shared) as pool:
            waiting = {pool.submit(_call, function, item) for item in items}
            while waiting:
                done, waiting = wait(waiting, LOOK, FIRST_COMPLETED)
                _show(bar, shared[:])
                for future in done:
                    future.result()


@contextmanager
def _pool(workers: int, initializer: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which end at once when the block ends with an exception, Ctrl-C and SIGTERM among them."""
    pool = ProcessPoolExecutor(workers, CONTEXT, initializer, arguments)
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, for lack of memory perhaps; the same command goes on from here, "
            "with fewer --workers if it happens again"
        ) from None
    except BaseException:
        for process in list(pool._processes.values()):  # Python 3.14 has kill_workers for this
            process.kill()
        raise


def _show(bar: tqdm[Any], counts: Sequence[int]) -> None:
    """Move a bar to so many units and bytes."""
    bar.set_postfix_str(f"{counts[1] / 1e9:.1f} GB", refresh=False)
    bar.update(counts[0] - bar.n)


def _belong_to_parent() -> None:
    """Leave Ctrl-C to the program, and end when that is killed; a worker would go on and then wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _share(counts: Any) -> None:
    global _done
    _done = counts
    _belong_to_parent()


def _call(function: Callable[[Item, Tick], None], item: Item) -> None:
    function(item, _count)


def _count(count: int, size: int) -> None:
    with _done.get_lock():
        _done[0] += count
        _done[1] += size
