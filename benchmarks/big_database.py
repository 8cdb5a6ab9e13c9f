"""What an evaluation on a large database takes: memory of the process, disk, time, and that a kill costs little.

Contract: writes small photographs of made-up facades into a temporary folder, `--views` of each place, and evaluates an
untrained tiny model on them as `pairvpr eval` does, in a fresh process, with a feature budget for a part of the
database. The process is killed with kill -9 once on the way, and started again. Memory is the peak resident size of the
process, mapped pages included; the processes that decode images are not in it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg

from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.files import read_json

SIDE = 80  # pixels of a photograph
METRES = 100  # between two places
POLL = 0.05  # seconds
SHARE = 0.4  # of the database whose features fit the budget


def write_photograph(root: Path, places: int, database: int, number: int) -> None:
    """Photograph `number`: the first `database` ones are the database's, round the places in turn."""
    place = number % places
    facade = np.random.default_rng(place).integers(0, 256, (8, 10, 3))
    pixels = np.kron(facade, np.ones((10, 8, 1))) + np.random.default_rng([1, number]).normal(0, 20, (SIDE, SIDE, 3))
    folder = root / ("database" if number < database else "queries") / f"{number // 1000:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"@{500000 + METRES * place}@5400000.5@32@U@{number}.jpg"
    (folder / name).write_bytes(simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), quality=90))


def write_data(root: Path, places: int, database: int, queries: int) -> None:
    """All photographs, by two processes."""
    with ProcessPoolExecutor(2) as pool:
        write = partial(write_photograph, root, places, database)
        for _ in pool.map(write, range(database + queries), chunksize=500):
            pass


def write_model(folder: Path) -> int:
    """An untrained tiny model; the bytes that stored features of one image take."""
    import torch

    from pairvpr_dist.config import load_config
    from pairvpr_dist.models.pair_vpr import PairVPR
    from pairvpr_dist.settings import PATCH

    torch.manual_seed(0)
    shape = load_config("stage2", "tiny", ["data.shards=[none]"]).model
    PairVPR(shape).save_pretrained(folder)
    return 2 * (shape.image_size // PATCH) ** 2 * shape.decoder_dim


def evaluate(command: list[str], scores: Path, kill: bool) -> float:
    """Run the evaluation; with `kill` only until the first queries are re-ranked. Seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if kill and any(scores.glob("*.npz")):
            process.kill()
        time.sleep(POLL)
    if process.returncode and not kill:
        raise UserError(f"{' '.join(command)}: ended with status {process.returncode}")
    return time.perf_counter() - started


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="of the database")
    parser.add_argument("--views", type=int, default=10, help="of a place")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--top-k", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_data(root / "data", args.images // args.views, args.images, args.queries)
        whole = args.images * write_model(root / "model")
        budget = SHARE * whole / 2**30
        command = [
            sys.executable, "-m", "pairvpr_dist.cli", "eval", "--model", str(root / "model"), "--data",
            str(root / "data"), "--out", str(root / "out"), "--top-k", str(args.top_k), "--feature-budget",
            f"{budget:.6f}", "eval.workers=1",
        ]  # fmt: skip
        seconds = [evaluate(command, root / "out.work" / "scores", kill) for kill in (True, False)]
        results = read_json(root / "out" / "results.json", "results")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of both starts and of the writers
    print(f"database                  {args.images:,} images, {args.queries:,} queries, top {results['top_k']}")
    print(f"dense features            {whole / 2**30:.3f} GiB, budget {budget:.3f} GiB")
    print(f"peak resident memory      {peak:.2f} GiB")
    print(f"killed after              {seconds[0]:.0f} s, in re-ranking; the next start took {seconds[1]:.0f} s")
    per_query = results["seconds_per_query"]
    print(f"describing                {results['seconds_per_database_image'] * 1000:.2f} ms an image")
    print(f"search, re-ranking        {per_query['search'] * 1000:.2f}, {per_query['re-rank'] * 1000:.1f} ms a query")


if __name__ == "__main__":
    exit_on_user_error(main)
