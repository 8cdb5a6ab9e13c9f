"""Small data sets in published forms, without pixels, and evaluations of synthetic ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pairvpr_dist.cli import run
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from shards.synthetic_city import write_format


def touch(root: Path, *names: str) -> Path:
    """Empty files below `root`, which is returned."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def cell(names: Iterable[str]) -> np.ndarray:
    """A cell of MATLAB with one column."""
    return np.array([*names, ""], dtype=object)[:-1].reshape(-1, 1)


def write_struct(path: Path, database: dict[str, float], queries: dict[str, float], **fields: Any) -> Path:
    """A dbStruct of images by their metres east; `fields` are written as given, None leaves one out."""
    struct = {
        "whichSet": "test",
        "dbImageFns": cell(database),
        "utmDb": np.array([[*database.values()], [0.0] * len(database)]),
        "qImageFns": cell(queries),
        "utmQ": np.array([[*queries.values()], [0.0] * len(queries)]),
        "posDistThr": 25.0,
        **fields,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"dbStruct": {key: value for key, value in struct.items() if value is not None}})
    return path


def load(name: str, root: Path) -> Protocol:
    return load_protocol(name, root, 25.0)


def positives(protocol: Protocol) -> dict[str, list[str]]:
    """The names of what is right, by query."""
    (found,) = protocol.ground_truths.values()
    return {
        query: [protocol.database[row] for row in rows] for query, rows in zip(protocol.queries, found, strict=True)
    }


def refused(name: str, root: Path) -> str:
    """The one line with which a data set is refused."""
    with pytest.raises(UserError) as error:
        load(name, root)
    assert "\n" not in str(error.value)
    return str(error.value)


def evaluated(export: Path, tmp_path: Path, protocol: str, form: str, **settings: Any) -> dict[str, Any]:
    """results.json of an evaluation of a synthetic tree, without its split where that is the tree's."""
    tree, out = tmp_path / "tree", tmp_path / "eval"
    write_format(tree, form, **settings)
    few = ["eval.precision=fp32", "eval.workers=0", "eval.top_k=2", "eval.recall_at=[1]"]
    run(["eval", "--model", str(export), "--data", str(tree), "--protocol", protocol, "--out", str(out), *few])
    results: dict[str, Any] = read_json(out / "results.json", "results")
    assert results["split"] == load(protocol, tree).digest
    return results
