"""Protocols `pitts30k-test`, `pitts30k-val` and `pitts250k-test`: Pittsburgh, as published or prepared.

Contract: as published, `datasets/NAME.mat` (or the file beside the images) states the split in dbStruct, UTM zone 17T;
database images lie in `000/`, `001/`, ..., queries in `queries_real/`. Prepared, `images/{test,val}/{database,queries}`
hold @-names. Where both are there, the MATLAB file wins. Positives are within 25 m; a query without any is a failure.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.dbstruct import find_files, read_dbstruct
from pairvpr_dist.retrieval.protocols.positions import located, protocol_within, read_at_form
from pairvpr_dist.retrieval.protocols.protocol import Protocol

PUBLISHED = {"pitts30k-test": (10_000, 6_816), "pitts30k-val": (10_000, 7_608), "pitts250k-test": (83_952, 8_280)}
ZONE = "17T"
DATABASE_FOLDERS = (".", "images", "Pittsburgh", "Pittsburgh/images")
QUERY_FOLDERS = ("queries_real", "queries", "Pittsburgh/queries_real", "Pittsburgh/queries")


def read_pitts(name: str, root: Path, positive_distance: float) -> Protocol:
    """One split of Pittsburgh. Raises `UserError` naming what is missing."""
    split, published = name.rpartition("-")[2], PUBLISHED[name]
    file = f"{name.replace('-', '_')}.mat"
    index = next((path for path in (root / "datasets" / file, root / file) if path.is_file()), None)
    if index is not None:
        return _read_published(name, root, index, split, positive_distance)
    for prepared in (root / "images" / split, root / split):
        if (prepared / "database").is_dir():
            return read_at_form(name, prepared, positive_distance, published)
    raise UserError(
        f"{root}: has neither datasets/{file} nor images/{split}/database/; name the folder of Pittsburgh, as "
        "published or prepared, with eval.data"
    )


def _read_published(name: str, root: Path, index: Path, split: str, positive_distance: float) -> Protocol:
    struct = read_dbstruct(index, positive_distance)
    if struct.which_set != split:
        raise UserError(f"{index}: states the split '{struct.which_set}', not '{split}'; take the published file")
    if not struct.queries:
        raise UserError(f"{index}: names no query; take the published file")
    database = find_files(root, DATABASE_FOLDERS, struct.database, index)
    queries = find_files(root, QUERY_FOLDERS, struct.queries, index)
    at = located(database, struct.database_utm, ZONE), located(queries, struct.query_utm, ZONE)
    return protocol_within(
        positive_distance, name, root, at[0], at[1], counts_without_positives=True, published_counts=PUBLISHED[name]
    )


READERS = {name: partial(read_pitts, name) for name in PUBLISHED}
