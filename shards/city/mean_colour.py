"""How well mean colour alone tells the cities of a tree of form `cities` apart: the least that a model should beat.

python -m shards.city.mean_colour DIR

Contract: a query's city is that of the image with the nearest mean RGB, once among the images of other streets
(train/), once among the database of the test, where its own place is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def mean_colours(root: Path, pattern: str) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """(n, 3) mean RGB of the images that a pattern names, and its `CITY` part of each."""
    part = pattern.split("/").index("CITY")
    paths = sorted(root.glob(pattern.replace("CITY", "*")))
    colours = [np.asarray(Image.open(path)).reshape(-1, 3).mean(axis=0) for path in paths]
    return np.array(colours), np.array([path.relative_to(root).parts[part] for path in paths])


def accuracy(root: Path, database: str) -> float:
    """Share of the test's queries, per cent, whose nearest image by mean colour shows their city."""
    colours, cities = mean_colours(root, "test/CITY/queries/*.jpg")
    others, theirs = mean_colours(root, database)
    nearest = np.linalg.norm(colours[:, None] - others, axis=-1).argmin(axis=1)
    return 100 * float((theirs[nearest] == cities).mean())


def main(root: Path) -> None:
    """Print both figures."""
    print(f"city by mean colour, among other streets: {accuracy(root, 'train/Images/CITY/*.jpg'):.1f} %")
    print(f"city by mean colour, among the database:  {accuracy(root, 'test/CITY/database/*.jpg'):.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
