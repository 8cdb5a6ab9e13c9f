"""File names of the @-convention: `@UTM east@UTM north@zone@letter@lat@lon@id@tile@heading@ ... @.jpg`.

The base name, split at `@`: 1 UTM east, 2 UTM north, 3 zone number, 4 zone letter, 5 latitude, 6 longitude, 7 panorama
id, 8 tile, 9 heading, 10 pitch, 11 roll, 12 height, 13 timestamp, 14 note. Only 1 and 2 are required.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from os.path import basename, splitext

TIME_DIGITS = (4, 6, 8, 12, 14)  # year, month, day, hour and minute, second
EARLIEST = (1, 1, 0, 0, 0)  # month, day, hour, minute and second where they are left out
NO_DIGIT, NO_ZONE = re.compile(r"\D"), re.compile(r"[^0-9A-Za-z]")


@dataclass(frozen=True)
class AtName:
    """What a name tells; NaN where it does not."""

    east: float  # metres
    north: float
    zone: str  # such as 10S; empty: unknown
    heading: float  # degrees clockwise from north
    time: float  # seconds since 1970, read as UTC


def parse_at_name(name: str) -> AtName | None:
    """The fields of a file name, or None where it has no UTM position."""
    fields = splitext(basename(name))[0].split("@")
    east, north = (_number(fields, index) for index in (1, 2))
    if math.isnan(east) or math.isnan(north):
        return None
    zone = NO_ZONE.sub("", "".join(fields[3:5]))
    return AtName(east, north, zone, _number(fields, 9), _time(fields[13] if len(fields) > 13 else ""))


def _number(fields: list[str], index: int) -> float:
    try:
        value = float(fields[index])
    except (IndexError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def _time(text: str) -> float:
    digits = NO_DIGIT.sub("", text)
    if len(digits) not in TIME_DIGITS:
        return math.nan
    told = [int(digits[start : start + 2]) for start in range(4, len(digits), 2)]
    month, day, hour, minute, second = *told, *EARLIEST[len(told) :]
    try:  # strptime takes many times as long
        return datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return math.nan
