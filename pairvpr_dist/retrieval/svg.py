"""Plots as inline SVG in the colours of the page that holds them.

Contract: the text colour is the page's own, whatever theme it has; there is no link, no URL and no date in the picture,
so that a page of them is self-contained and the same for the same numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

INK = "#010203"  # stands for the text colour of the page
PALETTE = ("#3b82c4", "#d97706", "#2f9e69", "#9a6bd1", "#d1517a", "#7d8794")  # readable on light and dark
NAMESPACES = ('xmlns="http://www.w3.org/2000/svg"', 'xmlns:xlink="http://www.w3.org/1999/xlink"')


def inline_svg(draw: Callable[[Any], None], size: tuple[float, float] = (4.2, 2.1)) -> Markup:
    """What `draw` puts on matplotlib axes, `size` in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "pairvpr", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    buffer = io.StringIO()
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=INK, alpha=0.12)
        draw(axes)
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for namespace in NAMESPACES:
        svg = svg.replace(namespace, "")  # HTML knows both
    return Markup(svg)
