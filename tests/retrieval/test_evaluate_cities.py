"""Cities evaluated from photographs to files and page, by SUP-VPR and by Pair-VPR."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from two_cities import CITIES, sup_vpr, write_two_cities

from launchers.local import run_evaluation
from pairvpr_dist import PairVPR
from pairvpr_dist.cli import run
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json
from pairvpr_dist.retrieval import city_stage
from pairvpr_dist.retrieval.candidates import CANDIDATES, read_candidates
from pairvpr_dist.retrieval.evaluate import evaluate_model
from pairvpr_dist.retrieval.protocols import load_protocol
from pairvpr_dist.retrieval.report import rewrite_report
from pairvpr_dist.retrieval.results import cautions, summary
from pairvpr_dist.settings import EvalConfig

FILES = ("candidates.csv", "outcomes.csv", "descriptors_database.npy", "descriptors_queries.npy", "database.csv")
TIMES = ("seconds_per_query", "seconds_per_database_image", "peak_memory_gib", "processes")
TOP_K = 6


@pytest.fixture(scope="module")
def cities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_cities(tmp_path_factory.mktemp("cities"))


@pytest.fixture(scope="module")
def sup_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sup") / "export"
    sup_vpr().save_pretrained(folder, {"stage": "stage2"})
    return folder


def config(model: Path, data: Path, *overrides: str) -> EvalConfig:
    given = ["eval.precision=fp32", "eval.workers=0", f"eval.top_k={TOP_K}", "eval.recall_at=[1,5]", *overrides]
    return load_config("eval", "tiny", [f"eval.model={model}", f"eval.data={data}", *given]).eval


@pytest.fixture(scope="module")
def measured(sup_export: Path, cities: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("run") / "eval"
    return evaluate_model(config(sup_export, cities, "eval.protocol=cities"), out), out


def test_both_orders_are_over_all_cities_and_exact_as_far_as_they_are_told(
    measured: tuple[dict[str, Any], Path], cities: Path
) -> None:
    results, out = measured
    protocol = load_protocol("cities", cities, 25)
    assert (results["top_k"], results["candidates"], results["calibration"]) == (TOP_K, 2 * TOP_K, None)
    database, queries = (np.load(out / f"descriptors_{name}.npy") for name in ("database", "queries"))
    found = read_candidates(out / CANDIDATES, protocol, results["candidates"])
    nearest = np.argsort(-(queries @ database.T), axis=1, kind="stable")
    assert (found.rows[:, :TOP_K] == nearest[:, :TOP_K]).all()
    assert protocol.database_city is not None
    for query, order in enumerate(nearest):
        city = protocol.database_city[found.reranked[query, 0]]
        own, others = (order[protocol.database_city[order] == c][:TOP_K].tolist() for c in (city, 1 - city))
        assert found.reranked[query].tolist() == own + others


def test_figures_of_cities_agree_with_those_of_the_ground_truths(
    measured: tuple[dict[str, Any], Path], model: PairVPR, export: Path, cities: Path, tmp_path: Path
) -> None:
    theirs = evaluate_model(config(export, cities, "eval.protocol=cities"), tmp_path / "eval")
    for results in (measured[0], theirs):
        found, truths = results["cities"], results["ground_truths"]
        assert found["names"] == list(CITIES)
        for name in ("descriptor", "reranked"):
            assert found["accuracy"][name] == truths["city"][f"{name}_recall"]["1"]
            assert found["over_all"][name] == truths["place"][f"{name}_recall"]
        confusion = np.array(found["confusion"])
        assert confusion.sum(axis=1).tolist() == [city["queries"] for city in found["per_city"]] == [5, 5]
        assert 100 * np.trace(confusion) / 10 == found["accuracy"]["reranked"]
        assert all(share >= found["over_all"]["descriptor"][n] for n, share in found["within"].items())
    assert theirs["candidates"] == theirs["top_k"] == TOP_K
    assert theirs["calibration"] is not None
    assert measured[0]["split"] == theirs["split"]


def test_without_cities_the_second_order_is_the_first_and_it_is_said(
    sup_export: Path, street: Path, tmp_path: Path
) -> None:
    results = evaluate_model(config(sup_export, street), tmp_path / "eval")
    (truth,) = results["ground_truths"].values()
    assert truth["reranked_recall"] == truth["descriptor_recall"]
    assert (results["candidates"], "cities" in results) == (TOP_K, False)
    (told,) = cautions(results)
    assert "no cities are known here" in told
    assert told in summary(results)
    assert told.replace("'", "&#39;") in rewrite_report(tmp_path / "eval").read_text()


def test_an_evaluation_that_was_stopped_goes_on_to_the_same_bytes(
    measured: tuple[dict[str, Any], Path],
    sup_export: Path,
    cities: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score = city_stage.score_cities
    calls: list[int] = []

    def until_the_second(*given: Any) -> np.ndarray:
        calls.append(len(given[3]))
        if len(calls) == 2:
            raise InterruptedError
        return score(*given)

    monkeypatch.setattr(city_stage, "score_cities", until_the_second)
    monkeypatch.setattr(city_stage, "QUERIES", 4)
    asked = config(sup_export, cities, "eval.protocol=cities")
    with pytest.raises(InterruptedError):
        evaluate_model(asked, tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
    assert_same(evaluate_model(asked, tmp_path / "eval"), tmp_path / "eval", *measured)
    assert calls == [4, 4, 4, 2]


def test_two_processes_measure_what_one_does(sup_export: Path, tmp_path: Path) -> None:
    """300 queries: two blocks of their descriptors, two of their cities."""
    data = write_two_cities(tmp_path / "data", queries=30)
    for processes in (1, 2):
        given = [
            f"run={tmp_path / str(processes)}", f"eval.model={sup_export}", f"eval.data={data}", "eval.workers=0",
            "eval.protocol=cities", "eval.precision=fp32", f"launch.processes={processes}", "launch.threads=1",
        ]  # fmt: skip
        run_evaluation(load_config("eval", "tiny", given))  # type: ignore[arg-type]
    one, two = (tmp_path / str(processes) / "eval" for processes in (1, 2))
    results = [read_json(out / "results.json", "results") for out in (one, two)]
    assert [found["processes"] for found in results] == [1, 2]
    assert_same(results[1], two, results[0], one)


def assert_same(ours: dict[str, Any], our_folder: Path, theirs: dict[str, Any], their_folder: Path) -> None:
    assert {k: v for k, v in ours.items() if k not in TIMES} == {k: v for k, v in theirs.items() if k not in TIMES}
    for name in FILES:
        assert (our_folder / name).read_bytes() == (their_folder / name).read_bytes(), name


def test_eval_prints_a_table_of_cities(
    sup_export: Path, export: Path, cities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--data", str(cities), "--protocol", "cities", "--top-k", "10", "eval.workers=0"]
    for model, second in ((sup_export, "city first"), (export, "re-ranked")):
        run(["eval", "--model", str(model), *rest, "--out", str(tmp_path / second)])
        printed = capsys.readouterr().out
        assert printed.count("descriptor ") >= 2
        assert re.search(rf"^ +{second} +\d", printed, re.MULTILINE)
        assert re.search(rf"over all, {second}$", printed, re.MULTILINE)
        assert re.search(r"^bern +5 ", printed, re.MULTILINE)


def test_the_report_shows_cities_and_their_confusion(
    measured: tuple[dict[str, Any], Path], export: Path, cities: Path, tmp_path: Path
) -> None:
    out = measured[1].parent
    evaluate_model(config(export, cities, "eval.protocol=cities"), out / "eval-pairs")
    page = rewrite_report(out).read_text()
    assert page.count("city first, over all cities") == page.count("re-ranked, over all cities") == 1
    assert page.count("descriptor, within the right city") == 2
    confusion = page[page.index('<table class="cities">') :]
    counts = re.findall(r'<td class="(?:hit|miss)"[^>]*>(\d*)</td>', confusion)
    assert [int(count or 0) for count in counts] == np.array(measured[0]["cities"]["confusion"]).flatten().tolist()
    assert "Calibration of" not in page  # the evaluation that is shown scored no pairs
    assert "Recall@1 when fewer candidates" in page  # of the other


def test_patience_is_refused(sup_export: Path, cities: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval.patience=3: a SUP-VPR model scores no pairs; leave the key out"):
        evaluate_model(config(sup_export, cities, "eval.protocol=cities", "eval.patience=3"), tmp_path / "eval")
    assert not list(tmp_path.iterdir())
