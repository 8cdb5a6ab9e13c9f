"""Seconds a query of re-ranking, against computing each pair plainly, in one run.

    python benchmarks/rerank.py
    python benchmarks/rerank.py --size vitg --top-k 100 500 --rounds 5

Contract: *plain* is `PairVPR.similarity` in fp32, each pair computed whole from the encoder's features, which lie in
pageable memory; *ours* is `score_candidates` from the files that an evaluation keeps, bf16 on a GPU and fp32 on a CPU.
Weights and features are random, the sizes are the model's. Rounds of both ways and of a large matrix product, the
device's limit, take turns; medians and ranges of the rounds are told. On a CPU fewer pairs than K are measured, what
follows for K is called extrapolated, and processor time is told too: it says more where others use the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.flops import rerank_pair_flops, similarity_flops
from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.retrieval.describe import IMAGES, DenseFeatures, Describer, feature_file
from pairvpr_dist.retrieval.rerank import score_candidates

CPU_PAIRS = 8  # measured on a CPU unless told
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows of the matrices whose product is the device's limit
TERA = 1e12


class Images(NamedTuple):
    """A query and its candidates, as both ways want them."""

    dense: Tensor  # (1 + K, N, C) fp32, of the encoder, in pageable memory; the query first
    stored: DenseFeatures  # the same projected, in files


def main() -> None:
    """The program."""
    args = _parse()
    eval_config = load_config("eval", args.size, ["eval.model=none", "eval.data=none"]).eval
    config = load_config("stage2", args.size, ["data.shards=none"]).model
    torch.manual_seed(0)
    describer = Describer(PairVPR(config), eval_config)
    kind = describer.device.type
    pairs = args.pairs or (CPU_PAIRS if kind == "cpu" else max(args.top_k))
    name = torch.cuda.get_device_name() if kind == "cuda" else f"{torch.get_num_threads()} threads of the CPU"
    print(f"{name}, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores; torch {torch.__version__}")
    patches, width = describer.feature_shape
    print(f"decoder of {args.size}: {config.decoder_depth} layers of {width}, {patches} patches; {args.rounds} rounds")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        images = make_images(describer, min(pairs, max(args.top_k)), Path(folder))
        measured: dict[int, Measured] = {}
        for top_k in args.top_k:
            count = min(pairs, top_k)
            if count not in measured:
                measured[count] = measure(describer, images, count, args.rounds)
            print(report(describer, top_k, count, measured[count]))


def make_images(describer: Describer, candidates: int, folder: Path) -> Images:
    """Random features of a query and of so many candidates; those for ours are written as an evaluation writes them."""
    patches, _ = describer.feature_shape
    dense = torch.randn(1 + candidates, patches, describer.model.encoder.dim)
    projected = torch.cat([describer.project(some.to(describer.device)) for some in dense.split(16)]).numpy()
    for first in range(0, len(projected), IMAGES):
        np.save(feature_file(folder, first // IMAGES), projected[first : first + IMAGES])
    return Images(dense, DenseFeatures(describer, [Path("unused")] * len(dense), folder, len(dense)))


class Seconds(NamedTuple):
    """What something took."""

    wall: float
    processor: float  # of all threads together


class Measured(NamedTuple):
    """Seconds of each way in each round, and whether both gave the same."""

    plain: list[Seconds]
    ours: list[Seconds]
    product: list[Seconds]
    difference: float  # the largest of a score
    same_best: bool


def measure(describer: Describer, images: Images, count: int, rounds: int) -> Measured:
    """Both ways on `count` candidates, in rounds that take turns."""
    query, candidates = np.zeros(1, dtype=np.int64), np.arange(1, 1 + count)[None]
    found: dict[str, np.ndarray] = {}

    def plain() -> None:
        found["plain"] = score_plainly(describer, images.dense[: 1 + count])

    def ours() -> None:
        found["ours"] = score_candidates(describer, images.stored, images.stored, query, candidates, None, None)[0]

    ways = {"plain": plain, "ours": ours, "product": matrix_product(describer)}
    seconds: dict[str, list[Seconds]] = {name: [] for name in ways}
    for work in ways.values():  # warm-up
        work()
    for _ in tqdm(range(rounds), f"{count} pairs", leave=False, disable=None):
        for name, work in ways.items():
            seconds[name].append(timed(work))
    difference = float(np.abs(found["plain"] - found["ours"]).max())
    return Measured(**seconds, difference=difference, same_best=found["plain"].argmax() == found["ours"].argmax())


@torch.inference_mode()
def score_plainly(describer: Describer, dense: Tensor) -> np.ndarray:
    """Scores (K,) of the first image with the others, as the model gives them."""
    batch = describer.scorer.pairs_at_once(dense.shape[1])
    query = dense[:1].to(describer.device)
    scores = []
    for some in dense[1:].split(batch):
        candidates = some.to(describer.device)
        scores.append(describer.model.similarity(query.expand(len(candidates), -1, -1), candidates).cpu())
    return torch.cat(scores).numpy()


def matrix_product(describer: Describer) -> Callable[[], None]:
    """One large product, in the precision of ours."""
    rows, dtype = MATRIX[describer.device.type], describer.scorer.dtype
    one, other = torch.randn(2, rows, rows, device=describer.device).to(dtype)

    def product() -> None:
        (one @ other)[0, 0].item()

    return product


def report(describer: Describer, top_k: int, count: int, measured: Measured) -> str:
    """The lines of one K."""
    config, on_cpu = describer.model.config, describer.device.type == "cpu"
    note = "" if count == top_k else f" (extrapolated from {count} pairs)"
    lines = [f"K = {top_k}{note}"]
    operations = 2 * MATRIX[describer.device.type] ** 3
    for name, seconds, flops, precision in (
        ("plain", measured.plain, similarity_flops(config), "float32"),
        ("ours", measured.ours, rerank_pair_flops(config), str(describer.scorer.dtype).removeprefix("torch.")),
    ):
        per_query = statistics.median(one.wall for one in seconds) / count * top_k
        # A CPU that others use too has its limit in the time that we had it.
        shares = [count * flops / operations * each for each in ratios(measured.product, seconds, on_cpu)]
        lines.append(
            f"  {name:<6}{per_query:10.3f} s/query  {flops / 1e9:8.4g} GFLOP a pair  {spread(shares, '.0%')}"
            f" of the limit of matrix products  {precision}"
        )
    faster = f"  ratio {spread(ratios(measured.plain, measured.ours, False), '.2f')}"
    if on_cpu:
        faster += f", of processor time {spread(ratios(measured.plain, measured.ours, True), '.2f')}"
    rate = operations / statistics.median(one.wall for one in measured.product)
    same = "the same best candidate" if measured.same_best else "another best candidate"
    return "\n".join([
        *lines,
        f"{faster} (wanted {1.15 if on_cpu else 5}); limit {rate / TERA:.3f} TFLOP/s",
        f"  largest difference of a score {measured.difference:.1e}, {same}",
    ])  # fmt: skip


def ratios(over: list[Seconds], under: list[Seconds], processor: bool) -> list[float]:
    """Round by round."""
    clock = Seconds._fields.index("processor" if processor else "wall")
    return [one[clock] / other[clock] for one, other in zip(over, under, strict=True)]


def spread(values: list[float], form: str) -> str:
    """Median and range of the rounds."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def timed(work: Callable[[], None]) -> Seconds:
    """Seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/rerank.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="vitb", help="configs/stage2 (default vitb)")
    parser.add_argument("--top-k", type=int, nargs="+", default=[100, 500], metavar="K", help="default 100 500")
    parser.add_argument("--pairs", type=int, metavar="N", help=f"measured at most (default: {CPU_PAIRS} on a CPU, all "
                        "on a GPU)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="measurements of each (default 5)")
    parser.add_argument("--folder", type=Path, help="where features are written (default: a temporary folder)")
    args = parser.parse_args()
    for name, value in (("pairs", args.pairs or 1), ("rounds", args.rounds), ("top-k", min(args.top_k))):
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    return args


if __name__ == "__main__":
    exit_on_user_error(main)
