"""The struct `dbStruct` of MATLAB files, in which Pittsburgh and Tokyo 24/7 state their splits.

Contract: the file is data, nothing in it runs. Names are as the file has them, checked to stay below a folder and to be
different; positions are UTM metres of one zone, which the data set's protocol knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.listed import check_files, check_names
from pairvpr_dist.retrieval.protocols.matlab import DamagedError, NewerMatlabError, NoReaderError, read_fields


@dataclass(frozen=True)
class DbStruct:
    """One split."""

    path: Path
    which_set: str  # train, val or test
    database: list[str]
    queries: list[str]  # may be empty
    database_utm: np.ndarray  # (M, 2) metres east and north
    query_utm: np.ndarray  # (Q, 2)


def read_dbstruct(path: Path, distance: float) -> DbStruct:
    """The split of a file. Raises `UserError` for a file of another kind or another distance of positives (metres)."""
    fields = _load(path)
    if not np.array_equal(fields["posDistThr"], distance):
        radius = repr(fields["posDistThr"])[:40]
        raise UserError(f"{path}: posDistThr is {radius}, the benchmark's is {distance:g} m; take the published file")
    database, database_utm = _images(path, fields, "dbImageFns", "utmDb")
    queries, query_utm = _images(path, fields, "qImageFns", "utmQ")
    database = check_names(database, path)
    queries = check_names(queries, path) if queries else []
    return DbStruct(path, str(fields["whichSet"]), database, queries, database_utm, query_utm)


def find_files(
    root: Path, folders: Sequence[str], names: list[str], index: Path, suffixes: Sequence[str] = ("",)
) -> list[str]:
    """The files of an index: `names`, in the first of `folders` that holds the first of them, relative to `root`.

    `suffixes` ("" keeps the name's own) are tried in order. Raises `UserError` when a file is missing.
    """
    for suffix in suffixes:
        files = [str(Path(name).with_suffix(suffix)) if suffix else name for name in names]
        for folder in folders:
            if (root / folder / files[0]).is_file():
                files = [(Path(folder) / name).as_posix() for name in files]
                check_files(root, files, index)
                return files
    places = ", ".join("the folder itself" if folder == "." else f"{folder}/" for folder in folders)
    raise UserError(f"{root}: '{names[0]}', which {index} names, lies in none of {places}; unpack the images there")


def _load(path: Path) -> dict[str, Any]:
    try:
        fields = read_fields(path)
    except NewerMatlabError:
        raise UserError(f"{path}: is of MATLAB 7.3; save it with -v7, or take the published file") from None
    except NoReaderError as error:
        raise UserError(f"{path}: MATLAB files are read with scipy, which does not load here ({error})") from None
    except DamagedError:
        raise UserError(f"{path}: not readable as a MATLAB file; copy it again") from None
    needed = {"whichSet", "dbImageFns", "utmDb", "qImageFns", "utmQ", "posDistThr"}
    missing = ["dbStruct"] if fields is None else sorted(needed - set(fields))
    if missing or fields is None:
        raise UserError(f"{path}: has no {', '.join(missing)}; take the file of the data set that states its split")
    return fields


def _images(path: Path, fields: dict[str, Any], names_key: str, utm_key: str) -> tuple[list[str], np.ndarray]:
    """Names and (n, 2) positions; a cell or a matrix of one column comes from scipy without that dimension."""
    names = np.atleast_1d(np.asarray(fields[names_key], dtype=object)).reshape(-1).tolist()
    try:
        utm = np.asarray(fields[utm_key], dtype=np.float64)
    except (TypeError, ValueError):
        utm = np.empty(0)
    utm = utm.reshape(2, -1) if utm.size == 2 * len(names) and utm.shape[:1] in ((2,), (0,)) else np.empty((2, 0))
    if utm.shape[1] != len(names) or not np.isfinite(utm).all() or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{path}: {utm_key} is not east and north of the images in {names_key}; take the published file"
        )
    return names, utm.T
