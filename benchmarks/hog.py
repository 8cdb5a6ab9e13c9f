"""Recall@1 of a hand-made descriptor (histogram of oriented gradients), to say what a trained one has to beat.

Contract: the same protocol, image size and figures as `pairvpr eval`; nothing is trained and nothing is written.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from skimage.feature import hog
from tqdm import tqdm

from pairvpr_dist.data.decoding import load_square
from pairvpr_dist.errors import exit_on_user_error
from pairvpr_dist.retrieval.index import search
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from pairvpr_dist.retrieval.results import hits
from shards.synthetic_city import write_folder

SIDE = 128  # pixels
CELL = 16  # pixels, side of a cell


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="examples:\n  python benchmarks/hog.py\n  python benchmarks/hog.py --data /data/my_city",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="data set of the protocol folder (default: the city of the demo)")
    args = parser.parse_args()
    if args.data:
        print(recall_at_1(load_protocol("folder", args.data, 25.0)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "city", places=1, test_places=80)
        print(recall_at_1(load_protocol("folder", Path(folder) / "city" / "test", 25.0)))


def recall_at_1(protocol: Protocol) -> str:
    """One line per ground truth of the protocol."""
    database, queries = (
        np.stack([describe(path) for path in tqdm(paths, name, unit="image")])
        for name, paths in (("database", protocol.database_paths), ("queries", protocol.query_paths))
    )
    _, rows = search(database, queries, 1)
    lines = []
    for name, positives in protocol.ground_truths.items():
        counted = np.array([len(right) > 0 for right in positives])
        share = 100 * hits(rows, positives)[counted].mean()
        lines.append(f"HOG, {name}: R@1 {share:.1f} % of {counted.sum()} queries")
    return "\n".join(lines)


def describe(path: Path) -> np.ndarray:
    """HOG of one image, fp32, L2-normalised."""
    grey = load_square(path, SIDE).float().mean(dim=0).numpy()
    features = hog(grey, orientations=9, pixels_per_cell=(CELL, CELL), cells_per_block=(2, 2)).astype(np.float32)
    return features / np.linalg.norm(features)


if __name__ == "__main__":
    exit_on_user_error(main)
