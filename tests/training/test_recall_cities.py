"""Recall of a SUP-VPR run over cities: that of an evaluation of its export, on one process and two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import run_program
from supvpr_program import SMALL, STEPS
from two_cities import write_two_cities

from pairvpr_dist.config import load_config
from pairvpr_dist.files import read_json_lines
from pairvpr_dist.retrieval.evaluate import evaluate_model
from pairvpr_dist.training.validation import measured_names
from shards.build import main as build
from shards.synthetic_city import write_format

NAMES = [f"validation/{kind}@{n}" for kind in ("recall", "descriptor_recall") for n in (1, 5)]
CITY = "validation/city_recall@1"
MEASURED = ["recall.protocol=cities", "recall.top_k=5", "recall.recall_at=[1,5]", "train.validate_every=3"]


@pytest.fixture(scope="module")
def cities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two cities of six places."""
    folder = tmp_path_factory.mktemp("cities")
    write_format(folder / "tree", "gsv-cities", places=6, views=4, cities=2, photograph_width=96)
    build(["gsv-cities", "--source", str(folder / "tree"), "--out", str(folder / "shards"), "--workers", "1"])
    return folder / "shards"


def test_it_is_what_an_evaluation_of_the_export_gives_on_any_number_of_processes(
    cities: Path, city_shards: Path, tmp_path: Path
) -> None:
    data = write_two_cities(tmp_path / "data")
    told = {}
    for world in (1, 2):
        out = tmp_path / str(world)
        plan = [["run", 0, None, [f"recall.data={data}", *MEASURED]]]
        run_program("supvpr_program.py", world, cities, city_shards, out, json.dumps(plan))
        lines = [line for line in read_json_lines(out / "run/stage2/metrics.jsonl") if CITY in line]
        told[world] = {line["step"]: [line[name] for name in (*NAMES, CITY)] for line in lines}
    assert list(told[1]) == [3, STEPS]
    assert told[1] == told[2]
    given = [f"eval.model={tmp_path / '1/run/stage2/export'}", f"eval.data={data}", "eval.protocol=cities",
             "eval.top_k=5", "eval.recall_at=[1,5]", "eval.workers=0"]  # fmt: skip
    results = evaluate_model(load_config("eval", "tiny", given).eval, tmp_path / "eval")
    places = results["ground_truths"]["place"]
    expected = [places[key][str(n)] for key in ("reranked_recall", "descriptor_recall") for n in (1, 5)]
    assert told[1][STEPS] == [*expected, results["cities"]["accuracy"]["reranked"]]


def test_its_names_are_known_before_the_first_step(tmp_path: Path) -> None:
    given = ["data.shards=none", *SMALL, f"recall.data={tmp_path}", *MEASURED]
    assert measured_names(load_config("stage2", "tiny", given)) == [*NAMES, CITY]
    assert CITY not in measured_names(load_config("stage2", "tiny", [*given, "recall.protocol=folder"]))
