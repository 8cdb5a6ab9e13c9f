"""What the plots of a study share: colours, words for keys, figures, ticks.

Contract: pure, apart from `save`. Colours are Okabe and Ito's (2008), which differ for colour-blind readers too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairvpr_dist.files import replaced_when_done
from pairvpr_dist.scaling.study import Study
from pairvpr_dist.scaling.study_table import BATCH, RANKS, Row

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
GREY = "#7d8794"
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
         "axes.titlelocation": "left", "axes.axisbelow": True}  # fmt: skip
DPI = 160
WIDTH = 7.2  # inches
FEW = 4.0  # times the low end of an axis
WORDS: dict[str, Callable[[Any], str]] = {
    RANKS: lambda v: f"{v} process{'es' * (v > 1)}",
    BATCH: lambda v: f"batch {v}",
    "train.zero_stage": lambda v: f"ZeRO-{v}",
    "train.checkpointing": lambda v: "all kept" if v == "none" else f"{v} checkpointing",
    "train.compile": lambda v: "eager" if v == "none" else f"compiled {v}",
    "train.max_steps": lambda v: f"{v} steps",
    "size": str,
    "model.encoder": str,
}


@dataclass(frozen=True)
class Drawn:
    """What a plot is made of."""

    study: Study
    rows: Sequence[Row]  # those that have what it shows
    keys: Sequence[str]  # what the study sweeps over
    rates: dict[str, float] | None  # of this machine's processor, where the study ran on it


def label_of(row: Row, keys: Sequence[str]) -> str:
    """What a row is among others that differ in `keys`: `ZeRO-2, batch 48`. Pure."""
    return ", ".join(WORDS[key](row[key]) if key in WORDS else f"{key.rpartition('.')[2]} {row[key]}" for key in keys)


def grouped(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, list[Row]]:
    """The rows that are alike in `keys`, by their label. Pure."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label_of(row, keys), []).append(row)
    return groups


def new_figure(study: Study, panels: int, height: float, width: float = WIDTH) -> tuple[Any, Sequence[Any]]:
    """A figure of so many panels side by side, inches high and wide, and their axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    figure.suptitle(study.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.grid(color="black", alpha=0.1)
    return figure, axes


def plain_log_ticks(axis: Any) -> None:
    """Numbers as people write them on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    axis.axes.autoscale_view()
    low, high = axis.get_view_interval()
    few = high < FEW * low  # then powers of ten and their halves leave the axis empty
    axis.set_major_locator(MaxNLocator(6) if few else LogLocator(10, subs=(1, 2, 3, 5, 7), numticks=12))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(path: Path, plot: Callable[[Drawn], Any], drawn: Drawn) -> Path:
    """Write the figure that `plot` makes as PNG."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE), replaced_when_done(path) as aside:  # type: ignore[arg-type]
        plot(drawn).savefig(aside, format="png", metadata={"Software": None})
    return path
