"""Protocols `nordland-vprbench` and `nordland-prepared`: two benchmarks made of one railway journey.

Contract: a frame is a number, the same in all seasons; no position is known. `nordland-vprbench` has every tenth frame
as a query, positives are the same frame and its neighbours: `ref/%07d.jpg` and `query/%07d.jpg`, where query i shows
frame 10 i; or prepared. `nordland-prepared` has every frame as a query, positives lie within 10 frames. Prepared, the
names of `images/test/{database,queries}` state frames as UTM north at a fixed step, by which 25 m hold the positives
and no more: 25 / 1.5 m and 25 / 10.5 m a frame, cut to one decimal. A query without positives is a failure.

A third Nordland, 3,450 images a season and +-2 frames, is neither of them and refused.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.listed import list_or_walk
from pairvpr_dist.retrieval.protocols.positions import located_by_name, positives_within
from pairvpr_dist.retrieval.protocols.protocol import Protocol, list_images, require_positives

VPRBENCH, PREPARED = "nordland-vprbench", "nordland-prepared"
PUBLISHED = {VPRBENCH: (27_592, 2_760), PREPARED: (27_592, 27_592)}
WITHIN = {VPRBENCH: 1, PREPARED: 10}  # frames
STEP = {name: 25 / (frames + 0.5) for name, frames in WITHIN.items()}  # dummy metres from frame to frame
EVERY = 10  # frames from query to query of VPR-Bench
SECTIONS = 3_450  # images of the third benchmark
TOLERANCE = 0.15  # metres: names have one decimal, cut off


def read_vprbench(root: Path, positive_distance: float) -> Protocol:
    """Nordland as in VPR-Bench: 2,760 queries. Raises `UserError` naming what is missing."""
    _refuse_sections(root)
    if not (root / "ref").is_dir():
        return _read_prepared(VPRBENCH, root, "ref/ and query/")
    database, queries = list_images(root, "ref"), list_images(root, "query")
    database_frames = [_number(root, name) for name in database]
    frames = [EVERY * _number(root, name) for name in queries]
    return _protocol(VPRBENCH, root, database, queries, database_frames, frames)


def read_prepared(root: Path, positive_distance: float) -> Protocol:
    """Nordland with all 27,592 winter frames as queries. Raises `UserError` naming what is missing."""
    _refuse_sections(root)
    if (root / "ref").is_dir():
        raise UserError(f"{root}: holds ref/, which is another Nordland; evaluate it with eval.protocol={VPRBENCH}")
    return _read_prepared(PREPARED, root, "images/test/database/ and images/test/queries/")


def _read_prepared(protocol: str, root: Path, wanted: str) -> Protocol:
    below = next((p for p in (root / "images/test", root / "test", root) if (p / "database").is_dir()), None)
    if below is None:
        raise UserError(f"{root}: has no {wanted}; name the folder of Nordland with eval.data")
    database, queries = (list_or_walk(below, folder) for folder in ("database", "queries"))
    database_frames, frames = (_frames(protocol, below, names) for names in (database, queries))
    multiple = round(STEP[VPRBENCH] / STEP[PREPARED])  # a step of one is exactly so many of the other
    if protocol == PREPARED and not any(frame % multiple for frame in database_frames):
        raise UserError(f"{below}: its names are those of {VPRBENCH}; evaluate it with eval.protocol={VPRBENCH}")
    return _protocol(protocol, below, database, queries, database_frames, frames)


def _protocol(
    name: str, root: Path, database: list[str], queries: list[str], database_frames: list[int], frames: list[int]
) -> Protocol:
    if len(database) == SECTIONS:
        raise _another(root)
    for names, of_names in ((database, database_frames), (queries, frames)):
        if len(set(of_names)) < len(names):
            twice = next(frame for frame in of_names if of_names.count(frame) > 1)
            both = " and ".join(name for name, frame in zip(names, of_names, strict=True) if frame == twice)
            raise UserError(f"{root}: {both} are one frame; keep one of them")
    at = ([(float(frame), 0.0, "") for frame in of_names] for of_names in (frames, database_frames))
    title = f"within {WITHIN[name]} frame{'s' if WITHIN[name] > 1 else ''}"
    truth = {title: positives_within(WITHIN[name], *at)}
    require_positives(truth, root, "check the numbers in both folders' names")
    return Protocol(
        name, root, database, queries, truth, counts_without_positives=True, published_counts=PUBLISHED[name]
    )


def _number(root: Path, name: str) -> int:
    stem = Path(name).stem
    if not re.fullmatch(r"[0-9]{7}", stem):
        raise UserError(f"{root / name}: is not named by a number of 7 digits, as {VPRBENCH} is; take its own files")
    return int(stem)


def _frames(protocol: str, root: Path, names: list[str]) -> list[int]:
    """Frame numbers of prepared names, from their dummy UTM."""
    at = np.array([position[:2] for position in located_by_name(root, names).values()])
    frames = np.rint(at[:, 1] / STEP[protocol])
    wrong = (at[:, 0] != 0) | (np.abs(at[:, 1] - frames * STEP[protocol]) > TOLERANCE)
    if wrong.any():
        other = next(name for name in WITHIN if name != protocol)
        raise UserError(
            f"{root / names[int(wrong.argmax())]}: states no frame of {protocol}, which is UTM east 0 and north "
            f"{STEP[protocol]:.2f} m a frame; for {other} name that protocol, else use protocol folder"
        )
    return [int(frame) for frame in frames]


def _refuse_sections(root: Path) -> None:
    if any(True for top in (root, root / "test") for _ in top.glob("*_images_test*")):
        raise _another(root)


def _another(root: Path) -> UserError:
    return UserError(
        f"{root}: is the Nordland of {SECTIONS:,} images a season and +-2 frames, a third benchmark that is not "
        f"supported; take the files of {VPRBENCH} or {PREPARED}"
    )


READERS = {VPRBENCH: read_vprbench, PREPARED: read_prepared}
