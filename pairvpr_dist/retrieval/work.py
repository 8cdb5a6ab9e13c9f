"""Work in blocks: an evaluation that was killed goes on where it was, on any number of processes.

Contract: what a block holds is a function of its number alone, not of who makes it, how many share the work or what was
done before; its file is whole or not there. One evaluation owns a work folder, which carries the identity of what is
measured: the beginnings of another one are refused, never mixed in and never removed.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from pairvpr_dist.distributed import from_rank_0, rank, world_size
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json, replaced_when_done, sole_owner, write_json

IDENTITY = "identity.json"
LOCK = "lock"
POLL = 0.01  # seconds
DIGEST = re.compile("[0-9a-f]{64}")


def work_folder(out: Path) -> Path:
    """Where the work of the results folder `out` lies until it is done: beside it, on the same disk."""
    return out.with_name(f"{out.name}.work")


class Blocks:
    """A list of `items` cut into blocks of `size`, each a file of arrays in `folder`; the last block may be smaller."""

    def __init__(self, folder: Path, items: int, size: int) -> None:
        self.folder = folder
        self.items = items
        self.size = size
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return -(-self.items // self.size)

    def rows(self, number: int) -> range:
        """The items of a block."""
        return range(number * self.size, min(self.items, (number + 1) * self.size))

    def share(self) -> list[int]:
        """The blocks that this rank is to make: those not there yet, dealt out. Every rank calls."""
        missing = from_rank_0(lambda: [number for number in range(len(self)) if not self._file(number).exists()])
        return missing[rank() :: world_size()]

    def keep(self, number: int, seconds: float, **arrays: np.ndarray) -> None:
        """Write a block that took so many seconds; with that it is done."""
        with replaced_when_done(self._file(number)) as aside, aside.open("wb") as handle:
            np.savez(handle, seconds=np.float64(seconds), **arrays)  # type: ignore[arg-type]

    def each(self, array: str) -> Iterator[np.ndarray]:
        """One array of every block in order, when all are done."""
        for number in range(len(self)):
            with np.load(self._file(number)) as block:
                yield block[array]

    @property
    def seconds(self) -> float:
        """What all blocks took together, as if one process had made them one after another."""
        return float(sum(self.each("seconds")))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def wait_for_all() -> None:
    """Wait for all ranks, like a barrier, but so that a signal to this process is heard meanwhile."""
    if world_size() == 1:
        return
    waiting = dist.barrier(async_op=True)
    while not waiting.is_completed():
        time.sleep(POLL)
    waiting.wait()  # tells when another rank is gone


def blocks_done(folder: Path) -> int:
    """How many blocks of a work folder are done; it grows as long as something comes of the work."""
    return sum(1 for _ in folder.glob("*/*.npz"))


@contextmanager
def owned_work(folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Own the work folder of what `identity` names inside the block. Every rank calls.

    Ended without an exception, the folder is removed; else it stays if anything in it is done. `UserError` where it
    holds the beginnings of something else, or another process works in it.
    """
    with ExitStack() as owned:
        from_rank_0(lambda: _open(folder, identity, owned))
        try:
            yield
        except BaseException:
            if rank() == 0 and not blocks_done(folder):
                shutil.rmtree(folder, ignore_errors=True)  # other ranks may still be writing
            raise
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    if rank() == 0:
        # NFS keeps a file that is open, and with it the folder: the lock goes when it is let go.
        shutil.rmtree(folder, ignore_errors=True)


def _open(folder: Path, identity: dict[str, Any], owned: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    owned.enter_context(sole_owner(folder / LOCK, "wait for it or name another folder for the results"))
    for torn in folder.glob("*/.*.part"):  # of processes that were killed
        torn.unlink()
    _remove_torn_results(folder)
    known = folder / IDENTITY
    if not known.exists():
        write_json(known, identity)
        return
    begun = read_json(known, "what an evaluation measures")
    if differing := [key for key in identity if begun.get(key) != identity[key]]:
        told = ", ".join(f"{key} was {_short(begun.get(key))}, is {_short(identity[key])}" for key in differing)
        raise UserError(f"{folder}: holds an evaluation that was begun with other settings ({told}); "
                        "give those to go on with it, or remove the folder")  # fmt: skip


def _remove_torn_results(folder: Path) -> None:
    """Results folders that were being written when their process was killed, beside the work folder."""
    torn = re.compile(rf"\.{re.escape(folder.name.removesuffix('.work'))}\.\d+\.part")  # see files.new_folder
    for path in folder.parent.iterdir():
        if torn.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _short(value: Any) -> str:
    """Digests are told by their beginning, all else whole."""
    return value[:12] if isinstance(value, str) and DIGEST.fullmatch(value) else str(value)
