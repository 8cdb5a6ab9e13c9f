"""metrics.jsonl of a training stage as pictures of curves, drawn in the colour of the page's text.

Contract: a series is drawn as it was logged, what was not logged is left out; of a step logged twice the later line
counts; a line torn by a killed run is passed over.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pairvpr_dist.files import read_json_lines

PANELS = {  # key of metrics.jsonl, logged of the batch and as validation/<key> -> title
    "loss": "loss",
    "loss/descriptor": "loss of the descriptor",
    "loss/pair": "loss of the pair classifier",
    "cross_view_gain": "cross-view gain: loss with a wrong second view minus loss with the right one",
}
INK = "#010203"  # stands for the text colour of the page, whatever theme it has
COLOURS = {"training": "#3b82c4", "validation": "#d97706"}


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
    """Lines over the steps as inline SVG without links, in the colours of the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "pairvpr", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    buffer = io.StringIO()
    with mpl.rc_context(style):
        figure = Figure(figsize=(5, 2.4), layout="constrained")
        axes = figure.add_subplot()
        for name, points in logged.items():
            marker = "." if len(points) < 30 else ""
            axes.plot(list(points), list(points.values()), color=COLOURS[name], lw=1.4, marker=marker, label=name)
        axes.grid(color=INK, alpha=0.12)
        axes.set_xlabel("step")
        axes.legend(frameon=False)
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for namespace in ('xmlns="http://www.w3.org/2000/svg"', 'xmlns:xlink="http://www.w3.org/1999/xlink"'):
        svg = svg.replace(namespace, "")  # HTML knows both; without them the page holds no URL at all
    return Markup(svg)
