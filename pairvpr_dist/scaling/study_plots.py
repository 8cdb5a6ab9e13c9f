"""The plots of a study, as PNG: scaling with efficiency, memory, MFU, predicted against measured, loss against compute.

Contract: a plot is drawn where the rows have what it shows, and says its units; lines are named where they end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.scaling.power_law import MIN_FOR_INTERVAL, MIN_POINTS, FittedLaw, fit_frontier, frontier
from pairvpr_dist.scaling.study_figures import (
    COLOURS,
    GREY,
    WIDTH,
    WORDS,
    Drawn,
    grouped,
    label_of,
    new_figure,
    plain_log_ticks,
    save,
)
from pairvpr_dist.scaling.study_table import BATCH, RANKS, Row

NEAR = 0.1  # predictions within this share of what was measured are good ones


def draw_all(folder: Path, drawn: Drawn) -> list[Path]:
    """Draw what the rows have into `folder`; the files."""
    files = []
    for name, (column, plot) in PLOTS.items():
        some = [row for row in drawn.rows if column in row and "error" not in row]
        if some:
            files.append(save(folder / f"{name}.png", plot, replace(drawn, rows=some)))
    return files


def scaling_plot(drawn: Drawn) -> Any:
    """Places a second over processes, and what each process keeps of its rate."""
    rows, keys, rates = drawn.rows, drawn.keys, drawn.rates
    figure, (left, right) = new_figure(drawn.study, 2, 3.0)
    weak = rows[0]["scaling"] == "weak"
    free = (RANKS, BATCH) if weak else (RANKS,)
    groups = grouped(rows, [key for key in keys if key not in free])
    ranks = sorted({row[RANKS] for row in rows})
    for colour, group in zip(cycle(COLOURS), groups.values(), strict=False):
        group.sort(key=lambda row: row[RANKS])
        at, rate = [row[RANKS] for row in group], [row["places_per_second"] for row in group]
        spread = [[row["places_per_second"] - row["places_per_second_low"] for row in group],
                  [row["places_per_second_high"] - row["places_per_second"] for row in group]]  # fmt: skip
        left.errorbar(at, rate, yerr=spread, color=colour, marker="o", ms=4, lw=1.5, capsize=2)
        left.plot(at, [rate[0] * n / at[0] for n in at], color=colour, lw=0.8, ls=":")
        if all("predicted_seconds_per_step" in row for row in group):
            told = [row[BATCH] / row["predicted_seconds_per_step"] for row in group]
            left.plot(at, told, color=colour, lw=1, ls="--")
        right.plot(at, [100 * row["efficiency"] for row in group], color=colour, marker="o", ms=4, lw=1.5)
    _names_at_end(left, [(g[-1][RANKS], g[-1]["places_per_second"], name) for name, g in groups.items()])
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(n) for n in ranks])
        axes.minorticks_off()
        axes.set_xlabel("processes")
    left.set_yscale("log", base=2)
    plain_log_ticks(left.yaxis)
    left.set_ylabel("places a second")
    share = f"{rows[0][BATCH] // rows[0][RANKS]} places a process" if weak else f"{rows[0][BATCH]} places a step"
    left.set_title(f"{'weak' if weak else 'strong'} scaling, {share}")
    right.axhline(100, color=GREY, lw=0.8, ls=":")
    right.set_ylim(0, 110)
    right.set_ylabel("efficiency, per cent")
    right.set_title("rate of a process, against the fewest")
    left.plot([], [], color=GREY, lw=1.5, marker="o", ms=4, label="measured (quartiles)")
    if any("predicted_seconds_per_step" in row for row in rows):
        left.plot([], [], color=GREY, lw=1, ls="--", label="predicted")
    left.plot([], [], color=GREY, lw=0.8, ls=":", label="linear")
    left.legend(frameon=False, fontsize=7, loc="upper left")
    _tell_cores(right, rates, ranks)
    return figure


def memory_plot(drawn: Drawn) -> Any:
    """Peak memory of a process at each point, with what was predicted."""
    rows, rates = drawn.rows, drawn.rates
    unit, factor = ("GiB", 1.0) if max(row["memory_gib"] for row in rows) >= 2 else ("MiB", 1024.0)

    def draw(axes: Any, y: float, row: Row, colour: str) -> None:
        told = row.get("predicted_memory_gib")
        axes.barh(y, factor * row["memory_gib"], height=0.62, color=colour)
        if told is not None:
            axes.plot([factor * told] * 2, [y - 0.4, y + 0.4], color="black", lw=2)
        text = f" {factor * row['memory_gib']:,.3g}" + ("" if told is None else f" ({factor * told:,.3g} predicted)")
        axes.text(factor * max(row["memory_gib"], told or 0), y, text, va="center", fontsize=7)

    what = "beside its libraries" if rates else "in tensors"
    return _bars(drawn, draw, f"peak memory of a process {what}, {unit}; black: predicted")


def mfu_plot(drawn: Drawn) -> Any:
    """The share of the machine's products that a step makes of use."""
    rates = drawn.rates

    def draw(axes: Any, y: float, row: Row, colour: str) -> None:
        axes.barh(y, 100 * row["mfu"], height=0.62, color=colour)
        axes.text(100 * row["mfu"], y, f" {100 * row['mfu']:.1f}", va="center", fontsize=7)

    peak = "of the GPU's data sheet" if rates is None else f"of {rates['flops'] / 1e9:,.0f} GFLOP/s a process, measured"
    return _bars(drawn, draw, f"MFU, per cent {peak}")


def predicted_plot(drawn: Drawn) -> Any:
    """Seconds of a step, predicted against measured."""
    rows, keys = drawn.rows, drawn.keys
    figure, (axes,) = new_figure(drawn.study, 1, 3.6, 0.75 * WIDTH)
    measured = np.array([row["seconds_per_step"] for row in rows])
    told = np.array([row["predicted_seconds_per_step"] for row in rows])
    ends = np.array([min(measured.min(), told.min()) / 1.25, max(measured.max(), told.max()) * 1.25])
    axes.fill_between(ends, ends * (1 - NEAR), ends * (1 + NEAR), color=GREY, alpha=0.18, lw=0)
    axes.plot(ends, ends, color=GREY, lw=0.8)
    marks = {ranks: mark for ranks, mark in zip(sorted({row[RANKS] for row in rows}), cycle("osD^v"), strict=False)}
    groups = grouped(rows, [key for key in keys if key != RANKS])
    for colour, (name, group) in zip(cycle(COLOURS), groups.items(), strict=False):
        for row in group:
            hollow = {"mfc": "white"} if row["calibrates"] else {}
            axes.plot(row["seconds_per_step"], row["predicted_seconds_per_step"], marks[row[RANKS]], color=colour, ms=6,
                      ls="", **hollow)  # fmt: skip
        axes.plot([], [], "s", color=colour, ms=5, label=name or "all", ls="")
    for ranks, mark in marks.items():
        axes.plot([], [], mark, color=GREY, ms=5, label=WORDS[RANKS](ranks), ls="")
    if any(row["calibrates"] for row in rows):
        axes.plot([], [], "o", color=GREY, mfc="white", ms=5, label="fitted, no prediction", ls="")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xscale="log", yscale="log")
    for axis, what in ((axes.xaxis, "measured"), (axes.yaxis, "predicted")):
        plain_log_ticks(axis)
        axis.set_label_text(f"{what} seconds of a step")
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_title(f"grey: within {100 * NEAR:.0f} per cent")
    return figure


def loss_plot(drawn: Drawn) -> Any:
    """Loss at the end of runs against their compute, and a power law through those that nothing beats."""
    study, rows, keys = drawn.study, drawn.rows, drawn.keys
    figure, (axes,) = new_figure(drawn.study, 1, 4.0)
    of_size = [key for key in keys if key not in ("train.max_steps", "seed", "data.places_per_batch")]
    for colour, (name, group) in zip(cycle(COLOURS), grouped(rows, of_size).items(), strict=False):
        points = over_seeds(group, keys)
        at, mean = [c for c, _ in points], [float(np.mean(losses)) for _, losses in points]
        axes.plot(at, mean, color=colour, lw=1, marker="o", ms=4)
        for compute, losses in points:
            axes.plot([compute] * len(losses), losses, ".", color=colour, ms=3, alpha=0.6)
        axes.annotate(name or study.size, (at[-1], mean[-1]), xytext=(5, 0), textcoords="offset points", color=colour,
                      fontsize=8, va="center")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("compute of a run, FLOPs")
    held_out = bool(study.validation or (study.synthetic and study.synthetic.validation_places))
    axes.set_ylabel(f"loss at its end{', places never trained on' if held_out else ''}")
    if (law := frontier_law(rows, keys)) is not None:
        _draw_law(axes, law, [row["compute"] for row in rows])
    axes.margins(x=0.12)
    plain_log_ticks(axes.yaxis)
    return figure


def over_seeds(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[float, list[float]]]:
    """Points (compute, the loss of every seed) by rising compute: rows that differ in no key but `seed`. Pure."""
    alike = grouped(rows, [key for key in keys if key != "seed"]).values()
    return sorted((group[0]["compute"], [row["loss"] for row in group]) for group in alike)


def frontier_law(rows: Sequence[Row], keys: Sequence[str]) -> FittedLaw | None:
    """The power law of the points that nothing beats; None where they are too few for one. Pure."""
    points = over_seeds(rows, keys)
    kept = frontier([c for c, _ in points], [float(np.mean(losses)) for _, losses in points])
    return fit_frontier(points) if len(kept) >= MIN_POINTS else None


def _draw_law(axes: Any, fitted: FittedLaw, compute: Sequence[float]) -> None:
    at = np.geomspace(min(compute), max(compute), 100)
    sure = f"{fitted.points} points, an interval needs {MIN_FOR_INTERVAL}"
    if fitted.draws:
        low, high = fitted.exponent_interval()
        axes.fill_between(at, *fitted.band(at), color=GREY, alpha=0.2, lw=0)
        sure = f"{low:.3f} to {high:.3f}, 90 per cent of draws"
    axes.plot(at, fitted.law(at), color="black", lw=1.2, ls="--")
    axes.set_title(f"dashed: L ∝ C$^{{-b}}$, b = {fitted.law.b:.3f} ({sure}), of points that none beats", fontsize=10)


def _bars(drawn: Drawn, draw: Callable[[Any, float, Row, str], None], what: str) -> Any:
    """A bar a row, those of one first key in one colour, the first row on top."""
    rows, keys = drawn.rows, drawn.keys
    figure, (axes,) = new_figure(drawn.study, 1, 1.1 + 0.27 * len(rows))
    colours = dict(zip(grouped(rows, keys[:1]), cycle(COLOURS), strict=False))
    for i, row in enumerate(rows):
        draw(axes, -i, row, colours[label_of(row, keys[:1])])
    axes.set_yticks([-i for i in range(len(rows))], [label_of(row, keys) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.25)
    axes.set_xlabel(what)
    return figure


def _names_at_end(axes: Any, ends: Sequence[tuple[float, float, str]]) -> None:
    """Names of lines beside their last points, moved apart where they would meet."""
    placed = -np.inf
    for (x, y, name), colour in sorted(zip(ends, cycle(COLOURS), strict=False), key=lambda end: end[0][1]):
        height = max(np.log2(y), placed + 0.12)
        placed = height
        axes.annotate(name, (x, 2**height), xytext=(6, 0), textcoords="offset points", color=colour, fontsize=8,
                      va="center", annotation_clip=False)  # fmt: skip


def _tell_cores(axes: Any, rates: dict[str, float] | None, ranks: Sequence[int]) -> None:
    if rates is not None and rates["threads"] * max(ranks) > rates["cores"]:
        axes.axvspan(rates["cores"] / rates["threads"], max(ranks), color=GREY, alpha=0.15, lw=0)
        axes.text(max(ranks), 2, "more than the cores ", ha="right", fontsize=7, color=GREY)


# By the name of the file: what a row must have, and the plot.
PLOTS: dict[str, tuple[str, Callable[[Drawn], Any]]] = {
    "scaling": ("efficiency", scaling_plot),
    "memory": ("memory_gib", memory_plot),
    "mfu": ("mfu", mfu_plot),
    "predicted": ("predicted_seconds_per_step", predicted_plot),
    "loss": ("compute", loss_plot),
}
