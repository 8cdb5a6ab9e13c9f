"""Latitude and longitude as UTM metres in one zone.

Contract: all positions given to one `Projection` are metres of the same zone and hemisphere, those of the first one, so
that a place on the border of two zones keeps its shape.
"""

from __future__ import annotations

import math

import utm

from shards.importers.csv_rows import Row

LATITUDES, LONGITUDES = (-80, 84), (-180, 180)  # that UTM covers
FARTHEST = 9  # degrees from the zone's middle, three times its half width: metres are worthless beyond


class Projection:
    """A UTM zone, chosen by the first position."""

    def __init__(self) -> None:
        self.zone: int | None = None
        self._northern = True

    def of_row(self, row: Row, latitude: str, longitude: str) -> tuple[float, float]:
        """(east, north) of two columns of a row, NaN where one is empty. Raises `UserError`."""
        lat, lon = row.number(latitude), row.number(longitude)
        if math.isnan(lat + lon):
            return math.nan, math.nan
        for column, value, (low, high) in ((latitude, lat, LATITUDES), (longitude, lon, LONGITUDES)):
            if not low <= value <= high:
                raise row.error(column, f"from {low} to {high}")
        if self.zone is None:
            self.zone, self._northern = utm.latlon_to_zone_number(lat, lon), lat >= 0
        middle = utm.zone_number_to_central_longitude(self.zone)
        if abs((lon - middle + 180) % 360 - 180) > FARTHEST:
            raise row.error(longitude, f"within {FARTHEST} degrees of UTM zone {self.zone}, that of the first row")
        east, north, *_ = utm.from_latlon(lat, lon, force_zone_number=self.zone, force_northern=self._northern)
        return float(east), float(north)
