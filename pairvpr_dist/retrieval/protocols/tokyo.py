"""Protocol `tokyo247`: Tokyo 24/7, as published or prepared.

Contract: as published, `tokyo247.mat` states the split in dbStruct, UTM zone 54S; its database names end in .jpg where
the files end in .png; queries lie in `247query_subset_v2/`. A file that states no queries leaves them to that folder,
where each has a csv `name,lat,lon`. Prepared, `images/test/{database,queries}` hold @-names. Where both are there, the
MATLAB file wins. Positives are within 25 m; a query without any is a failure.
"""

from __future__ import annotations

import csv
from pathlib import Path

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.dbstruct import DbStruct, find_files, read_dbstruct
from pairvpr_dist.retrieval.protocols.positions import Located, located, protocol_within, read_at_form
from pairvpr_dist.retrieval.protocols.protocol import Protocol, list_images

NAME = "tokyo247"
FILE = "tokyo247.mat"
PUBLISHED = (75_984, 315)
ZONE_NUMBER, ZONE = 54, "54S"
DATABASE_FOLDERS = (".", "tokyo247", "images", "tokyo247/images", "database_gsv_vga", "database")
QUERIES = "247query_subset_v2"
QUERY_FOLDERS = (QUERIES, f"{QUERIES}/{QUERIES}", f"tokyo247/{QUERIES}", f"queries/{QUERIES}", f"query/{QUERIES}",
                 "queries", "query", "tokyo247/query")  # fmt: skip


def read_tokyo247(root: Path, positive_distance: float) -> Protocol:
    """Tokyo 24/7. Raises `UserError` naming what is missing."""
    index = next((path for path in (root / "datasets" / FILE, root / FILE) if path.is_file()), None)
    if index is not None:
        struct = read_dbstruct(index, positive_distance)
        files = find_files(root, DATABASE_FOLDERS, struct.database, index, suffixes=(".png", ""))
        database = located(files, struct.database_utm, ZONE)
        queries = _stated_queries(root, struct) if struct.queries else _queries_with_csv(root)
        return protocol_within(
            positive_distance, NAME, root, database, queries, counts_without_positives=True, published_counts=PUBLISHED
        )
    for prepared in (root / "images" / "test", root / "test", root):
        if (prepared / "database").is_dir():
            return read_at_form(NAME, prepared, positive_distance, PUBLISHED)
    raise UserError(
        f"{root}: has neither {FILE} nor images/test/database/; name the folder of Tokyo 24/7, as published "
        "or prepared, with eval.data"
    )


def _stated_queries(root: Path, struct: DbStruct) -> Located:
    return located(find_files(root, QUERY_FOLDERS, struct.queries, struct.path), struct.query_utm, ZONE)


def _queries_with_csv(root: Path) -> Located:
    """All images of the folder of queries, each at the position of its csv."""
    folder = next((folder for folder in QUERY_FOLDERS if any((root / folder).glob("*.csv"))), QUERIES)
    return {name: _csv_position((root / name).with_suffix(".csv")) for name in list_images(root, folder)}


def _csv_position(path: Path) -> tuple[float, float, str]:
    import utm

    try:
        with path.open(newline="", encoding="utf-8") as handle:
            _, lat, lon, *_ = next(csv.reader(handle))
        east, north, *_ = utm.from_latlon(float(lat), float(lon), force_zone_number=ZONE_NUMBER)
    except FileNotFoundError:
        raise UserError(f"{path}: is not there; every query needs its csv name,lat,lon") from None
    except (StopIteration, ValueError, UnicodeDecodeError, csv.Error, utm.OutOfRangeError):
        raise UserError(f"{path}: its first line is not name,lat,lon in degrees; take the published file") from None
    return float(east), float(north), ZONE


READERS = {NAME: read_tokyo247}
