"""Keys of places.

Contract: a key is a function of the place's own name alone, fits shard_format.KEY_PATTERN and differs for different
names, so that a source can be read as a stream, in any order.
"""

from __future__ import annotations

import hashlib
import math
import os
import re

DIGEST = 16  # hexadecimal digits
LENGTH = 120  # of shard_format.KEY_PATTERN
PLAIN = re.compile(rf"[A-Za-z0-9_@+=-]{{1,{LENGTH}}}")
# Keys that the writer gives to parts of large places, and those made here.
TAKEN = re.compile(rf".*-(part\d+|[0-9a-f]{{{DIGEST}}})")


def place_key(name: str) -> str:
    """The name itself where it can be a key, else what a key may hold of it, and a digest of the name."""
    if PLAIN.fullmatch(name) and not TAKEN.fullmatch(name):
        return name
    text = re.sub(r"[^A-Za-z0-9_@+=-]+", "_", name)[: LENGTH - DIGEST - 1]
    return f"{text}-{hashlib.blake2b(os.fsencode(name), digest_size=DIGEST // 2).hexdigest()}"


def cell_key(east: float, north: float, zone: str, cell: int) -> str:
    """The key of a cell of the UTM grid: its south-west corner, and its zone such as 10S where it is known."""
    return place_key(f"@{math.floor(east / cell) * cell}@{math.floor(north / cell) * cell}@{zone}")
