"""The plot of strong and weak scaling: pace, efficiency, and where the time of a step goes.

Contract: the same points make the same picture; colours are of Okabe and Ito's palette, which the colour-blind can tell
apart, and lines are named where they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from pairvpr_dist.files import replaced_when_done
from pairvpr_dist.scaling.strong_weak import Point

STRONG, WEAK, IDEAL = "#0072B2", "#D55E00", "#7d8794"
PARTS = {"compute": "#56B4E9", "exposed": "#E69F00", "update": "#009E73", "straggling": "#CC79A7"}
NAMES = {"compute": "computing", "exposed": "communication not hidden", "update": "update", "straggling": "stragglers"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "pairvpr",
}


def draw(path: Path, title: str, strong: Sequence[Point], weak: Sequence[Point]) -> None:
    """Write the picture; its kind is the ending of `path`."""
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 3.7), layout="constrained")
        pace, efficiency, step = figure.subplots(1, 3)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        _draw_pace(pace, strong, weak)
        _draw_efficiency(efficiency, strong, weak)
        _draw_step(step, strong)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_when_done(path) as part:
            figure.savefig(part, format=path.suffix[1:] or "png", dpi=120)


def _draw_pace(axes: Any, strong: Sequence[Point], weak: Sequence[Point]) -> None:
    axes.set_title("pairs a second", fontsize=9)
    for points, colour, name in ((weak, WEAK, "weak"), (strong, STRONG, "strong")):
        if points:
            ideal = [points[0].alone * points[0].gpus, points[0].alone * points[-1].gpus]
            axes.plot([points[0].gpus, points[-1].gpus], ideal, color=IDEAL, lw=1, ls=(0, (2, 2)))
            _line(axes, points, [point.one.places_per_second for point in points], colour, name)
    axes.set_yscale("log")
    axes.text(
        0.03,
        0.95,
        "dotted: every GPU at the pace of the first",
        transform=axes.transAxes,
        color=IDEAL,
        fontsize=8,
        va="top",
    )
    _over_gpus(axes, [*strong, *weak])


def _draw_efficiency(axes: Any, strong: Sequence[Point], weak: Sequence[Point]) -> None:
    axes.set_title("per cent of the first point's pace for each GPU", fontsize=9)
    for points, colour, name in ((weak, WEAK, "weak"), (strong, STRONG, "strong")):
        if points:
            _line(axes, points, [100 * point.efficiency for point in points], colour, name, below=name == "weak")
    if weak:
        _line(axes, weak, [100 * point.one.checkpoints.goodput for point in weak], IDEAL, "goodput", dashed=True)
    axes.set_ylim(0, 105)
    _over_gpus(axes, [*strong, *weak])


def _draw_step(axes: Any, points: Sequence[Point]) -> None:
    axes.set_title("strong scaling: per cent of a step", fontsize=9)
    bottom = [0.0] * len(points)
    for part, colour in PARTS.items():
        share = [100 * getattr(point.one.step, part) / point.one.step.seconds for point in points]
        axes.bar(range(len(points)), share, bottom=bottom, color=colour, width=0.8, label=NAMES[part])
        bottom = [low + own for low, own in zip(bottom, share, strict=True)]
    axes.set_xticks(range(len(points)), [f"{point.gpus}" for point in points])
    axes.set_xlabel("GPUs")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _line(
    axes: Any,
    points: Sequence[Point],
    values: Sequence[float],
    colour: str,
    name: str,
    dashed: bool = False,
    below: bool = False,
) -> None:
    """A line with its name at its end, there a little lower where another is as high."""
    gpus = [point.gpus for point in points]
    style: Any = {"ls": (0, (3, 2))} if dashed else {"marker": "o", "ms": 3.5}
    axes.plot(gpus, values, color=colour, lw=1.6, **style)
    at = (6, -4 if below else 2 if dashed else 0)
    axes.annotate(name, (gpus[-1], values[-1]), at, textcoords="offset points", color=colour, va="center")


def _over_gpus(axes: Any, points: Sequence[Point]) -> None:
    gpus = sorted({point.gpus for point in points})
    axes.set_xscale("log", base=2)
    ticks = gpus if len(gpus) < 8 else gpus[:: 2 if len(gpus) < 15 else 3]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("GPUs")
    axes.grid(alpha=0.15)
    axes.margins(x=0.16)
