"""Example queries of the report with their first answers, as pictures.

Contract: examples are chosen by a rule, evenly over the list of the queries of a kind, never by hand. A picture that
cannot be read is a `UserError` that names it. Where the ground truth is secret, answers are shown without a judgement.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pairvpr_dist.data.decoding import upright_rgb
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.candidates import NONE, Candidates
from pairvpr_dist.retrieval.outcomes import NOWHERE, Outcomes
from pairvpr_dist.retrieval.protocols import Protocol
from pairvpr_dist.retrieval.results import RERANKED

THUMBNAIL = 320  # pixels, the longer side
EXAMPLES = 4  # of each kind
TITLES = {  # kind of outcomes.KINDS -> title; what re-ranking changed comes first
    "won": "Fixed by re-ranking",
    "lost": "Broken by re-ranking",
    "missed": "Wrong both times, a right one among the candidates",
    "unreachable": "Unreachable, no right one among the candidates",
    "right": "Right both times",
}
FAILURES = ("missed", "unreachable")  # kinds without a right picture among the first answers: one is shown beside them


@dataclass
class Shot:
    """A picture of the grid with what is said below it."""

    picture: str  # data URL; empty where there is no candidate
    caption: str  # and what a screen reader says
    right: bool | None = None  # None for what is no answer, or not judged


@dataclass
class Group:
    """Queries of one kind: how many there are, and some of them as query, descriptor's first, re-ranked first."""

    kind: str
    title: str
    queries: int
    rows: list[list[Shot]]


def query_groups(
    protocol: Protocol, candidates: Candidates, outcomes: dict[str, Outcomes], second: str = RERANKED
) -> list[Group]:
    """The counted queries by what the two stages made of them in the primary ground truth; `second`: its ranking."""
    firsts = {"descriptor": candidates.rows[:, 0], second: candidates.reranked[:, 0]}
    if not outcomes:
        every = np.arange(len(protocol.queries))
        rows = [[_query(protocol, q), *_answers(protocol, q, firsts, None)] for q in _spread(every)]
        return [Group("secret", "Not judged, for the ground truth is secret", len(every), rows)]
    primary = next(iter(outcomes))
    kinds = outcomes[primary].kinds
    groups = []
    for kind, title in TITLES.items():
        members = np.flatnonzero(kinds[kind])
        rows = []
        for query in _spread(members):
            right = protocol.ground_truths[primary][query]
            row = [_query(protocol, query), *_answers(protocol, query, firsts, right)]
            if kind in FAILURES and len(right):
                row.append(_right_one(protocol, query, right, candidates.reranked[query], outcomes[primary]))
            rows.append(row)
        groups.append(Group(kind, title, len(members), rows))
    return groups


def _spread(members: np.ndarray) -> np.ndarray:
    """Some of them, evenly."""
    return members[np.linspace(0, len(members) - 1, min(EXAMPLES, len(members))).astype(int)]


def _query(protocol: Protocol, query: int) -> Shot:
    return Shot(thumbnail(protocol.root / protocol.queries[query]), "query")


def _answers(protocol: Protocol, query: int, firsts: dict[str, np.ndarray], positives: np.ndarray | None) -> list[Shot]:
    """The first answer by each ranking; `positives` None: not judged."""
    shots = []
    for by, first in firsts.items():
        row = int(first[query])
        right = None if positives is None else bool(np.isin(row, positives))
        told = "first" if right is None else "right" if right else "wrong"
        shots.append(_answer(protocol, query, row, f"{by}: {told}", right))
    return shots


def _right_one(protocol: Protocol, query: int, positives: np.ndarray, reranked: np.ndarray, outcomes: Outcomes) -> Shot:
    """What would have been right: the best of the candidates, else any of the positives."""
    rank = int(outcomes.reranked[query])
    if rank == NOWHERE:
        return _answer(protocol, query, int(positives[0]), "would be right", None)
    return _answer(protocol, query, int(reranked[rank - 1]), f"right one, at rank {rank:,}", None)


def _answer(protocol: Protocol, query: int, row: int, caption: str, right: bool | None) -> Shot:
    if row == NONE:
        return Shot("", f"{caption}, no candidate", right)
    metres = protocol.distance(query, row)
    told = caption if metres is None else f"{caption}, {metres:,.0f}\N{NO-BREAK SPACE}m"
    return Shot(thumbnail(protocol.root / protocol.database[row]), told, right)


def thumbnail(path: Path) -> str:
    """A small JPEG of an image as data URL, turned as its EXIF data say."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            small = upright_rgb(image)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: not readable as an image ({error}); restore it, for the report shows it") from None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return data_url(buffer.getvalue(), "jpeg")


def data_url(content: bytes, kind: str) -> str:
    """A picture inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
