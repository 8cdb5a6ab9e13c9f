"""The struct `dbStruct` of a MATLAB file as JSON, read in a process of its own.

Contract: `read_fields` runs this file as a program, because a damaged file can end the process of scipy's reader, not
only raise. The program reads data alone and executes nothing of the file; it imports nothing of this package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NEWER, NO_STRUCT, NO_READER = 3, 4, 5  # exit statuses


class NewerMatlabError(Exception):
    """The file is of MATLAB 7.3, an HDF5 file."""


class NoReaderError(Exception):
    """scipy cannot be loaded; says why."""


class DamagedError(Exception):
    """The file cannot be read."""


def read_fields(path: Path) -> dict[str, Any] | None:
    """Fields of dbStruct: numbers, strings, lists of them; a matrix is a list of rows. None: the file has no dbStruct.

    As scipy simplifies, a dimension of one is gone. Raises `NewerMatlabError`, `NoReaderError` or `DamagedError`.
    """
    # -P: the folder of this file holds no libraries. Those of PYTHONPATH and of the user are this process's own.
    done = subprocess.run([sys.executable, "-P", __file__, str(path)], capture_output=True, check=False)
    if done.returncode == NEWER:
        raise NewerMatlabError
    if done.returncode == NO_STRUCT:
        return None
    if done.returncode == NO_READER:
        raise NoReaderError(done.stderr.decode(errors="replace").strip())
    if done.returncode:
        raise DamagedError
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def main() -> None:
    """The program."""
    try:
        import numpy as np
        from scipy.io import loadmat
    except ImportError as error:
        print(str(error).partition("\n")[0], file=sys.stderr)
        sys.exit(NO_READER)
    try:
        struct = loadmat(sys.argv[1], simplify_cells=True).get("dbStruct")
    except NotImplementedError:
        sys.exit(NEWER)
    if not isinstance(struct, dict):
        sys.exit(NO_STRUCT)
    json.dump({key: np.asarray(value).tolist() for key, value in struct.items()}, sys.stdout, default=repr)


if __name__ == "__main__":
    main()
