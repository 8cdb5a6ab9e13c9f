"""Training steps of every size and stage: ours, eager, in CUDA graphs, and straightforward.

Contract: the measurements are those of benchmarks/train_step.py, in one round and with fewer forms; sizes come by how
much is asked for them, and those for which no time is left are said to be. Its program has all forms, more rounds and
profiles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.gpu.part import Table, device, open_table
from benchmarks.step_worker import Worker
from benchmarks.train_step import OURS, configured, fit, report, take_turns
from pairvpr_dist.training.deepspeed_config import compiled_blocks

GIB = 2**30
COMPARED = {OURS: "auto", "compile=none": "none", "compile=graphs": "graphs"}  # ways that blocks are run
PLACES = {"stage1": 128, "stage2": 32}  # in the first batch that is tried
CASES = (  # whether blocks are also run in other ways, which must be compiled first
    ("vitg", "stage1", True),
    ("vitb", "stage1", False),
    ("vitg", "stage2", False),
    ("vitl", "stage1", False),
    ("vits", "stage1", False),
    ("vitb", "stage2", False),
    ("vitl", "stage2", False),
    ("vits", "stage2", False),
)
SMALL = (("tiny", "stage1", False), ("tiny", "stage2", False))
FEW = 45.0  # seconds; less than this is not begun on


def main() -> None:
    """The program."""
    table = open_table()
    plain, ours = Worker("plain"), Worker("ours")
    for size, stage, all_ways in SMALL if table.small else CASES:
        if table.left() < FEW and not table.small:
            table.add({"size": size, "stage": stage, "note": "no time left"})
        else:
            measure(table, plain, ours, size, stage, all_ways)
    plain.end()
    ours.end()


def measure(table: Table, plain: Worker, ours: Worker, size: str, stage: str, all_ways: bool) -> None:
    """The rows of one size and stage."""
    kind = device().type
    fitted, losses = fit(plain, ours, configured(stage, size, kind, []), 4 if table.small else PLACES[stage])
    if fitted is None:
        table.add({"size": size, "stage": stage, "note": "does not fit"})
        return
    ways = {
        form: (fitted.train.checkpointing, compiled_blocks(replace(fitted, train=replace(fitted.train, compile=how))))
        for form, how in COMPARED.items()
        if all_ways or form == OURS
    }
    limit = ours.ask("product")
    for row in report(fitted, list(take_turns(plain, ours, fitted, ways, kind, rounds=1)), losses, limit):
        table.add(shown(row))


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of that program as one of this table."""
    fits = row["pairs_per_second"] is not None
    return {
        "size": row["size"],
        "stage": row["stage"],
        "form": row["form"],
        "places": row["micro_batch"],
        "pairs/s": row["pairs_per_second"],
        "MFU, %": None if row["mfu"] is None else 100 * row["mfu"],
        "of the limit of products, %": 100 * row["share_of_limit"] if fits else None,
        "peak, GiB": row["peak_bytes"] / GIB if fits else None,
        "times the straightforward one": row["ratio"],
        "note": "" if fits else "does not fit",
    }


if __name__ == "__main__":
    main()
