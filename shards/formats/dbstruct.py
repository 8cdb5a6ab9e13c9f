"""Files of MATLAB with the struct `dbStruct`, as Pittsburgh and Tokyo 24/7 state their splits.

Contract: the bytes are a pure function of the arguments; the date that scipy writes into the header is taken out.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from scipy.io import savemat

from shards.city.places import CityView

HEADER = b"MATLAB 5.0 MAT-file, written by pairvpr_dist".ljust(116)  # the text at the start of every such file
DISTANCE = 25.0  # metres


def dbstruct(which_set: str, database: Mapping[str, CityView], queries: Mapping[str, CityView]) -> bytes:
    """The file of one split; names are those that the file states."""
    fields = {
        "whichSet": which_set,
        "dbImageFns": _names(database),
        "utmDb": _utm(database),
        "qImageFns": _names(queries),
        "utmQ": _utm(queries),
        "numDb": float(len(database)),
        "numQ": float(len(queries)),
        "posDistThr": DISTANCE,
        "posDistSqThr": DISTANCE**2,
        "nonTrivPosDistSqThr": 100.0,
    }
    file = io.BytesIO()
    savemat(file, {"dbStruct": fields})
    return HEADER + file.getvalue()[len(HEADER) :]


def _names(images: Mapping[str, CityView]) -> np.ndarray:
    """A cell of one column."""
    return np.array([*images, ""], dtype=object)[:-1].reshape(-1, 1)


def _utm(images: Mapping[str, CityView]) -> np.ndarray:
    """(2, n) metres east and north."""
    return np.array([(view.east, view.north) for view in images.values()]).reshape(-1, 2).T
