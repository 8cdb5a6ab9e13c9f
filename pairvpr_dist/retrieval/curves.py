"""metrics.jsonl of a training stage as pictures of curves.

Contract: a series is drawn as it was logged, what was not logged is left out; of a step logged twice the later line
counts; a line torn by a killed run is passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pairvpr_dist.files import read_json_lines
from pairvpr_dist.retrieval.svg import PALETTE, inline_svg

PANELS = {  # key of metrics.jsonl, logged of the batch and as validation/<key> -> title
    "loss": "loss",
    "loss/descriptor": "loss of the descriptor",
    "loss/pair": "loss of the pair classifier",
    "loss/city": "loss between cities",
    "city_accuracy": "share of images whose counterpart is told from other cities",
    "cross_view_gain": "cross-view gain: loss with a wrong second view minus loss with the right one",
}
COLOURS = dict(zip(("training", "validation"), PALETTE, strict=False))


@dataclass
class Curve:
    """One panel: its title, the last value of each of its series and its picture as inline SVG."""

    title: str
    last: dict[str, float]
    svg: Markup


def read_curves(metrics: Path) -> list[Curve]:
    """The panels of a stage; none where the file is missing."""
    lines = read_json_lines(metrics)
    curves = []
    for key, title in PANELS.items():
        found = {"training": series(lines, key), "validation": series(lines, f"validation/{key}")}
        logged = {name: points for name, points in found.items() if points}
        if logged:
            curves.append(Curve(title, {name: points[max(points)] for name, points in logged.items()}, draw(logged)))
    return curves


def series(lines: list[dict[str, Any]], key: str) -> dict[int, float]:
    """Step -> value of `key`, ascending; finite values only."""
    points = {line["step"]: line[key] for line in lines if key in line and math.isfinite(line[key])}
    return dict(sorted(points.items()))


def draw(logged: dict[str, dict[int, float]]) -> Markup:
    """Lines over the steps."""

    def lines(axes: Any) -> None:
        for name, points in logged.items():
            marker = "." if len(points) < 30 else ""
            axes.plot(list(points), list(points.values()), color=COLOURS[name], lw=1.4, marker=marker, label=name)
        axes.set_xlabel("step")
        axes.legend(frameon=False)

    return inline_svg(lines)
