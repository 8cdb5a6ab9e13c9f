"""Protocols `sfxl-v1`, `sfxl-v2`, `sfxl-night`, `sfxl-occlusion`: one database of San Francisco, four sets of queries.

Contract: `test/database` and `test/queries_{v1,v2,night,occlusion}` hold @-names, at any of the levels at which SF-XL
is unpacked; a list `database_images_paths.txt` beside the folder replaces walking through 2.8 million files. Positives
are within 25 m; a query without any is a failure.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.positions import read_at_form
from pairvpr_dist.retrieval.protocols.protocol import Protocol

DATABASE = 2_800_000  # published as "2.8M"
ROUNDED_TO = 100_000
QUERIES = {"v1": 1_000, "v2": 598, "night": 466, "occlusion": 76}
BELOW = ("processed/test", "test", ".")  # where the data set may have them


def read_sfxl(queries: str, root: Path, positive_distance: float) -> Protocol:
    """One of the four sets of queries. Raises `UserError` naming what is missing."""
    folder = f"queries_{queries}"
    test = next((root / below for below in BELOW if (root / below / "database").is_dir()), None)
    if test is None or not (test / folder).is_dir():
        missing = f"{folder}/ beside {test / 'database'}" if test else "processed/test/database/ or test/database/"
        raise UserError(f"{root}: has no {missing}; name the root of SF-XL, or its test set, with eval.data")
    published = DATABASE, QUERIES[queries]
    return read_at_form(f"sfxl-{queries}", test, positive_distance, published, folder, ROUNDED_TO)


READERS = {f"sfxl-{queries}": partial(read_sfxl, queries) for queries in QUERIES}
