"""Protocols whose positives lie within a distance: positions from names, and what is near to what.

Contract: a position is UTM metres and a zone; only positions of one zone are compared, the limit is included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.data.at_names import parse_at_name
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.listed import list_or_walk
from pairvpr_dist.retrieval.protocols.protocol import Protocol, as_rows, require_positives

Position = tuple[float, float, str]  # east, north in metres, zone ("" where it is not told)
Located = dict[str, Position]  # by the images' names
AT_NAME = "; name the files @EAST@NORTH@...@.jpg"


def located(names: list[str], utm: np.ndarray, zone: str) -> Located:
    """Images at (n, 2) positions of one zone."""
    return {name: (east, north, zone) for name, (east, north) in zip(names, utm.tolist(), strict=True)}


def located_by_name(root: Path, names: list[str], remedy: str = AT_NAME) -> Located:
    """Images at the positions that @-names tell. `UserError`, ending in `remedy`, for a name that tells none."""
    found = [parse_at_name(name) for name in names]
    positions = {name: (at.east, at.north, at.zone) for name, at in zip(names, found, strict=True) if at}
    if len(positions) < len(names):
        raise UserError(f"{root / names[found.index(None)]}: no UTM position in the name{remedy}")
    return positions


def positives_within(distance: float, queries: list[Position], database: list[Position]) -> list[np.ndarray]:
    """Per query the rows of the database within `distance` metres, the limit included, in the query's UTM zone."""
    zones = np.array([zone for _, _, zone in database])
    at = np.array([position[:2] for position in database])
    order = np.argsort(at[:, 0], kind="stable")  # sorted by east, only a narrow band has to be measured per query
    east = at[order, 0]
    positives = []
    for e, n, zone in queries:
        band = order[np.searchsorted(east, e - distance, "left") : np.searchsorted(east, e + distance, "right")]
        near = np.hypot(*(at[band] - (e, n)).T) <= distance
        positives.append(as_rows(band[near & (zones[band] == zone)]))
    return positives


def protocol_within(
    distance: float,
    name: str,
    root: Path,
    database: Located,
    queries: Located,
    remedy: str = "check the positions of both",
    **stated: Any,
) -> Protocol:
    """The protocol `name` over images at known positions, in any order, positives within `distance` metres.

    `stated`: further fields of `Protocol`. Raises `UserError` with `remedy` where no query has a positive.
    """
    database, queries = dict(sorted(database.items())), dict(sorted(queries.items()))
    database_at, queries_at = list(database.values()), list(queries.values())
    ground_truths = {f"within {distance:g} m": positives_within(distance, queries_at, database_at)}
    require_positives(ground_truths, root, remedy)
    database_utm, query_utm = (np.array([at[:2] for at in ats]) for ats in (database_at, queries_at))
    return Protocol(name, root, list(database), list(queries), ground_truths, database_utm, query_utm, **stated)


def read_at_form(
    name: str, root: Path, distance: float, published: tuple[int, int], queries: str = "queries", rounded_to: int = 1
) -> Protocol:
    """A published set in the prepared form: `root` holds database/ and a folder of queries, all @-names.

    A query without positives counts as a failure, as in the field's evaluation of this form.
    """
    at = [located_by_name(root, list_or_walk(root, folder)) for folder in ("database", queries)]
    return protocol_within(
        distance, name, root, at[0], at[1], counts_without_positives=True, published_counts=published,
        database_rounded_to=rounded_to,
    )  # fmt: skip
