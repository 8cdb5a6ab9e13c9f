"""Re-ranking against computing each pair plainly.

Contract: the measurements are those of benchmarks/rerank.py, whose text says what they are.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.part import Cell, Table, open_table
from benchmarks.rerank import MATRIX, Measured, make_images, measure, ratios
from pairvpr_dist.config import load_config
from pairvpr_dist.costs.flops import rerank_pair_flops
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.retrieval.describe import Describer

ROUNDS = 3


def main() -> None:
    """The program."""
    table = open_table()
    size, counts = ("tiny", [4]) if table.small else ("vitb", [100, 500])
    eval_config = load_config("eval", size, ["eval.model=none", "eval.data=none"]).eval
    torch.manual_seed(0)
    describer = Describer(PairVPR(load_config("stage2", size, ["data.shards=none"]).model), eval_config)
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(describer, max(counts), Path(folder))
        for count in counts:
            add(table, describer, count, measure(describer, images, count, 1 if table.small else ROUNDS))


def add(table: Table, describer: Describer, count: int, measured: Measured) -> None:
    """The row of so many candidates."""
    share = count * rerank_pair_flops(describer.model.config) / (2 * MATRIX[describer.device.type] ** 3)
    row: dict[str, Cell] = {"candidates of a query": count}
    for name, seconds in (("plain", measured.plain), ("ours", measured.ours)):
        row[f"{name}, s/query"] = statistics.median(one.wall for one in seconds)
    row["ratio (wanted 5)"] = statistics.median(ratios(measured.plain, measured.ours, False))
    row["ours of the limit of products, %"] = (
        100 * share * statistics.median(ratios(measured.product, measured.ours, False))
    )
    row["largest difference of a score"] = measured.difference
    row["same best candidate"] = "yes" if measured.same_best else "no"
    table.add(row)


if __name__ == "__main__":
    main()
