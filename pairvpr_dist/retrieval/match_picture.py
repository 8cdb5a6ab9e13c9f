"""A picture of one query and its best candidates side by side, with what is known of each under it.

Contract: a function of the image files and the matches alone; images are shown whole and upright, at most `COLUMNS`
candidates in a row. The bar under a candidate is its probability; without a calibration there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pairvpr_dist.data.at_names import parse_at_name
from pairvpr_dist.data.decoding import upright_rgb
from pairvpr_dist.errors import one_line
from pairvpr_dist.retrieval.calibration import percent
from pairvpr_dist.retrieval.place_index import Match

SIDE = 300  # pixels that an image takes at most each way
GAP = 16
COLUMNS = 5
LINE = 21  # height of a line of text
BELOW = 10 + 4 * LINE + GAP  # an image: bar, text and the gap to the next row
INK, FAINT, RULE, BAR = "#1a1a1a", "#6b6b6b", "#d8d8d8", "#2a7f62"


def match_picture(query: str | Path, matches: Sequence[Match]) -> Image.Image:
    """The query on the left, its matches in their order on the right, in rows of `COLUMNS`."""
    asked, *shots = [_shot(path) for path in (Path(query), *(match.path for match in matches))]
    rows = [slice(first, first + COLUMNS) for first in range(0, len(matches), COLUMNS)]
    heights = [max(shot.height for shot in shots[row]) for row in rows]
    heights[0] = max(heights[0], asked.height)
    left = SIDE + 3 * GAP  # of the first candidate
    width = left + min(COLUMNS, len(matches)) * (SIDE + GAP)
    canvas = Image.new("RGB", (width, GAP + sum(heights) + len(rows) * BELOW), "white")
    draw = ImageDraw.Draw(canvas)
    draw.line([(left - GAP, GAP), (left - GAP, canvas.height - GAP)], RULE)
    bottom = GAP + heights[0]
    _paste(canvas, asked, GAP, bottom)
    _write(draw, GAP, bottom, [("query", True, INK), (Path(query).name, False, FAINT), *_place(Path(query).name)])
    for row, next_height in zip(rows, [*heights[1:], 0], strict=True):
        for column, (match, shot) in enumerate(zip(matches[row], shots[row], strict=True)):
            x = left + column * (SIDE + GAP)
            _paste(canvas, shot, x, bottom)
            _bar(draw, x, bottom, match.probability)
            _write(draw, x, bottom, _caption(match))
        bottom += BELOW + next_height
    return canvas


def _caption(match: Match) -> list[tuple[str, bool, str]]:
    return [
        (f"{match.rank}.  {percent(match.probability)}{'' if match.probability is None else ' same place'}", True, INK),
        (f"score {match.score:.2f}   similarity {match.similarity:.3f}".replace("-", "−"), False, INK),
        (match.name, False, FAINT),
        *_place(match.name),
    ]


def _place(name: str) -> list[tuple[str, bool, str]]:
    at = parse_at_name(name)
    return [] if at is None else [(f"{at.east:.0f} E  {at.north:.0f} N  {at.zone}", False, FAINT)]


def _shot(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.contain(upright_rgb(image), (SIDE, SIDE), Image.Resampling.BICUBIC)


def _paste(canvas: Image.Image, shot: Image.Image, x: int, bottom: int) -> None:
    canvas.paste(shot, (x + (SIDE - shot.width) // 2, bottom - shot.height))


def _bar(draw: ImageDraw.ImageDraw, x: int, bottom: int, probability: float | None) -> None:
    if probability is not None:
        draw.rectangle((x, bottom + 3, x + SIDE - 1, bottom + 7), RULE)
        draw.rectangle((x, bottom + 3, x + round((SIDE - 1) * probability), bottom + 7), BAR)


def _write(draw: ImageDraw.ImageDraw, x: int, bottom: int, lines: list[tuple[str, bool, str]]) -> None:
    """Lines of text under an image, with whether they are bold, and their colour."""
    for number, (text, bold, colour) in enumerate(lines):
        draw.text((x, bottom + 10 + number * LINE), _fitting(one_line(text), _font(bold)), colour, _font(bold))


def _fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, or its two ends where it is too long: names of a folder differ in both."""
    cut = text
    keep = len(text)
    while font.getlength(cut) > SIDE:
        keep -= 1
        cut = f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"
    return cut


@lru_cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / name, 15)
