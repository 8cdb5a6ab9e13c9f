"""report.html: one page that shows what a run learned and what its retrieval finds.

Contract: the page is self-contained (pictures and styles inside, nothing is fetched) and holds only what the run
folder and its evaluations hold: a part that is missing leaves its section out. Example queries are chosen by a rule,
evenly over the list of queries, never by hand.
"""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageOps

from pairvpr_dist.config import config_from_dict
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_text
from pairvpr_dist.retrieval.curves import Curve, read_curves
from pairvpr_dist.retrieval.evaluate import CANDIDATES, RESULTS, read_results
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from pairvpr_dist.retrieval.results import first_hits
from pairvpr_dist.settings import EvalConfig

THUMBNAIL = 320  # pixels, the longer side
EXAMPLES = 4  # of each kind
KINDS = {  # (descriptor's first right, re-ranked first right) -> title; what re-ranking changed comes first
    (False, True): "Fixed by re-ranking",
    (True, False): "Broken by re-ranking",
    (True, True): "Right both times",
    (False, False): "Wrong both times",
}


@dataclass
class Evaluation:
    """One evaluation to be shown under a label: its folder and its results.json."""

    label: str
    folder: Path
    results: dict[str, Any]


@dataclass
class Shot:
    """A picture of the grid with what is said below it."""

    picture: str  # data URL
    caption: str  # and what a screen reader says
    right: bool | None = None  # None for the query itself


@dataclass
class Group:
    """Queries of one kind: how many there are, and some of them as (query, descriptor's first, re-ranked first)."""

    title: str
    queries: int
    rows: list[list[Shot]]


def rewrite_report(run: Path) -> Path:
    """Write <run>/report.html from what the run folder holds; the data set of its evaluation has to be where it was."""
    found = sorted(run.glob(f"eval*/{RESULTS}"), key=lambda path: (path.parent.name == "eval", path.parent.name))
    if not found:
        raise UserError(f"{run}: holds no eval/{RESULTS}; evaluate the run first")
    labels = [path.parent.name.removeprefix("eval").strip("-_") or "trained" for path in found]
    results = read_results(found[-1].parent)
    config = config_from_dict(EvalConfig, results["config"], str(found[-1]))
    protocol = load_protocol(config.protocol, config.data, config.positive_distance)
    out = run / "report.html"
    write_report(run, out, [(label, path.parent) for label, path in zip(labels, found, strict=True)], protocol)
    return out


def write_report(run: Path, out_html: Path, evaluations: list[tuple[str, Path]], protocol: Protocol) -> None:
    """Write the report of `run` to `out_html`.

    `evaluations` are (label, folder of `evaluate`), in the order of the recall table; the last one gives the grid of
    queries, whose pictures come from `protocol`. Raises `UserError` when they were measured on another split.
    """
    shown = [Evaluation(label, path, read_results(path)) for label, path in evaluations]
    for evaluation in shown:
        if evaluation.results["split"] != protocol.digest:
            raise UserError(
                f"{evaluation.folder}: was measured on another split than {protocol.root} holds now; evaluate again"
            )
    template = Environment(
        loader=PackageLoader("pairvpr_dist.retrieval", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    ).get_template("report.html")
    page = template.render(
        run=run.resolve().name,
        evaluations=shown,
        results=shown[-1].results,
        curves=_curves(run),
        reconstruction=_reconstruction(run),
        groups=query_groups(shown[-1].folder, protocol),
    )
    write_text(out_html, page)


def query_groups(evaluation: Path, protocol: Protocol) -> list[Group]:
    """The counted queries by what the two stages made of them, with examples spread evenly over each kind."""
    by_descriptor, by_score = read_firsts(evaluation, protocol)
    counted = np.array([len(rows) > 0 for rows in next(iter(protocol.ground_truths.values()))])
    right = [first_hits(protocol, rows) for rows in (by_descriptor, by_score)]
    groups = []
    for (before, after), title in KINDS.items():
        members = np.flatnonzero(counted & (right[0] == before) & (right[1] == after))
        chosen = members[np.linspace(0, len(members) - 1, min(EXAMPLES, len(members))).astype(int)]
        rows = [
            [
                Shot(_thumbnail(protocol.query_paths[query]), "query"),
                _answer(protocol, query, by_descriptor[query], before),
                _answer(protocol, query, by_score[query], after),
            ]
            for query in chosen
        ]
        groups.append(Group(title, len(members), rows))
    return groups


def read_firsts(evaluation: Path, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Database rows (Q,) that are first by descriptor and first by pair score, from candidates.csv."""
    query_rows = {name: row for row, name in enumerate(protocol.queries)}
    database_rows = {name: row for row, name in enumerate(protocol.database)}
    firsts = {"descriptor_rank": np.zeros(len(query_rows), int), "rank": np.zeros(len(query_rows), int)}
    with (evaluation / CANDIDATES).open(newline="", encoding="utf-8") as handle:
        for line in csv.DictReader(handle):
            for rank, rows in firsts.items():
                if line[rank] == "1":
                    rows[query_rows[line["query"]]] = database_rows[line["database"]]
    return firsts["descriptor_rank"], firsts["rank"]


def _answer(protocol: Protocol, query: int, row: int, right: bool) -> Shot:
    metres = protocol.distance(query, row)
    caption = ("right" if right else "wrong") + ("" if metres is None else f", {metres:,.0f} m")
    return Shot(_thumbnail(protocol.database_paths[row]), caption, right)


def _thumbnail(path: Path) -> str:
    with Image.open(path) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return _data_url(buffer.getvalue(), "jpeg")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _curves(run: Path) -> list[tuple[str, list[Curve]]]:
    stages = {"Stage 1: masked modelling": "stage1", "Stage 2: descriptor and pair classifier": "stage2"}
    found = [(title, read_curves(run / stage / "metrics.jsonl")) for title, stage in stages.items()]
    return [(title, curves) for title, curves in found if curves]


def _reconstruction(run: Path) -> str | None:
    pictures = sorted((run / "stage1" / "reconstructions").glob("*.png"))
    return _data_url(pictures[-1].read_bytes(), "png") if pictures else None
