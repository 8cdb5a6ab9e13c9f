"""Pairs a second from shards to the device, and what of the copies is hidden.

Contract: `EpochLoader` over shards of photographs of the synthetic city in GSV-Cities' form, with as many workers as
there are cores; augmentation is the device's own part of it. A copy is hidden as far as steps with one take no longer
than the same steps without, beside work that takes the device `WORK` seconds a step.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.forms import FORMS, write_form
from benchmarks.gpu.part import Table, device, open_table, seconds_of, wait_for_device
from pairvpr_dist.config import load_config
from pairvpr_dist.data.augmentation import DeviceAugment
from pairvpr_dist.data.loader import Batch, EpochLoader

WORK = 0.05  # seconds
GIGA = 1e9
STEPS = 10
ROWS = 4096  # of the matrices that the device multiplies
LONG = 10**6  # steps, more than any run here reads


def main() -> None:
    """The program."""
    table = open_table()
    cores = os.cpu_count() or 1
    places, size, workers, seconds = (8, 2, 1, 0.2) if table.small else (512, 128, cores, 4.0)
    form = next(form for form in FORMS if form.name == "GSV-Cities")
    with tempfile.TemporaryDirectory() as folder:
        shards = write_form(form, places, Path(folder), min(2, cores) if table.small else cores)
        config = load_config("stage1", "vitb", [
            f"data.shards={shards}", f"data.places_per_batch={size}", "data.min_images_per_place=2",
            f"data.workers={workers}",
        ])  # fmt: skip
        loader = EpochLoader(config.data, config.model.image_size, seed=0, rank=0, world=1)
        augment = DeviceAugment(config.data.augment.colour_jitter)

        def read(batch: Batch) -> None:
            pass

        def move_and_augment(batch: Batch) -> None:
            augment(batch.to(device()))

        name = f"{workers} workers, batches of {size}"
        add(table, f"read by {name}, pairs/s", size * rate(loader.batches(0, LONG), read, workers, seconds))
        moved = size * rate(loader.batches(0, LONG), move_and_augment, workers, seconds)
        add(table, "read, copied and augmented, pairs/s", moved)
        batch = next(loader.batches(0, 1))
    there = batch.to(device())
    add(table, "augmented on the device alone, pairs/s", size / seconds_of(lambda: augment(there), 0.2))
    if device().type == "cuda":
        add_copies(table, batch)


def add(table: Table, what: str, value: float) -> None:
    """A row."""
    table.add({"what": what, "value": value})


def rate(stream: Iterator[Batch], use: Callable[[Batch], None], workers: int, seconds: float) -> float:
    """Batches a second, once each worker has made some."""
    for batch in itertools.islice(stream, 2 * workers + 1):
        use(batch)
    wait_for_device()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        use(next(stream))
        count += 1
    wait_for_device()
    return count / (time.perf_counter() - started)


def add_copies(table: Table, batch: Batch) -> None:
    """What copies take, and what of it shows."""
    pinned = batch.pin_memory()
    pageable = Batch(*(torch.empty_like(t).copy_(t) for t in vars(batch).values()))
    size = sum(t.nbytes for t in vars(batch).values())
    copying = seconds_of(lambda: pinned.to("cuda"), 0.2)
    add(table, "copy of a batch, MB", size / 1e6)
    add(table, "from page-locked memory, GB/s", size / copying / GIGA)
    add(table, "from pageable memory, GB/s", size / seconds_of(lambda: pageable.to("cuda"), 0.2) / GIGA)
    work = matrix_work()
    without = seconds_of_steps(work, lambda: None)
    with_copy = seconds_of_steps(work, lambda: pinned.to("cuda"))
    add(table, "work of a step without a copy, ms", 1e3 * without)
    add(table, "with a copy from page-locked memory, ms", 1e3 * with_copy)
    add(table, "share of the copy that is hidden, %", 100 * (1 - (with_copy - without) / copying))
    add(table, "share of the step that it takes, %", 100 * (with_copy / without - 1))


def matrix_work() -> Callable[[], Tensor]:
    """Products of matrices that take the device about `WORK` seconds."""
    one = torch.randn(ROWS, ROWS, device=device(), dtype=torch.bfloat16)
    times = max(1, round(WORK / seconds_of(lambda: one @ one, 0.1)))

    def work() -> Tensor:
        out = one
        for _ in range(times):
            out = one @ one
        return out

    return work


def seconds_of_steps(work: Callable[[], Tensor], copy: Callable[[], object]) -> float:
    """Seconds a step of a copy and of work, one after another without waiting."""
    work()
    wait_for_device()
    started = time.perf_counter()
    for _ in range(STEPS):
        copy()
        work()
    wait_for_device()
    return (time.perf_counter() - started) / STEPS


if __name__ == "__main__":
    main()
