"""An evaluation from photographs to files."""

from __future__ import annotations

import copy
import csv
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json
from pairvpr_dist.retrieval.candidates import CANDIDATE_COLUMNS
from pairvpr_dist.retrieval.candidates import read_candidates as read_candidates_csv
from pairvpr_dist.retrieval.describe import Describer
from pairvpr_dist.retrieval.evaluate import evaluate, evaluate_model, identity, read_results
from pairvpr_dist.retrieval.protocols import load_protocol
from pairvpr_dist.settings import EvalConfig


def config(export: Path, data: Path, *overrides: str) -> EvalConfig:
    given = [f"eval.model={export}", f"eval.data={data}", "eval.precision=fp32", "eval.batch_size=5", *overrides]
    return load_config("eval", "tiny", given).eval


@pytest.fixture(scope="module")
def evaluated(export: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("run") / "eval"
    return evaluate_model(config(export, street), out), out


def read_candidates(out: Path) -> list[dict[str, str]]:
    with (out / "candidates.csv").open() as handle:
        return list(csv.DictReader(handle))


def test_results_say_what_was_measured(evaluated: tuple[dict[str, Any], Path], export: Path, street: Path) -> None:
    results, out = evaluated
    assert results == read_json(out / "results.json", "results") == read_results(out)
    assert (results["queries"], results["database"], results["top_k"], results["image_size"]) == (6, 18, 10, 70)
    assert results["split"] == load_protocol("folder", street, 25).digest
    assert results["model"]["sha256"] == hashlib.sha256((export / "model.safetensors").read_bytes()).hexdigest()
    assert results["config"]["top_k"] == 10
    assert set(results["seconds_per_query"]) == {"describe", "search", "re-rank"}
    assert all(seconds > 0 for seconds in results["seconds_per_query"].values())
    assert 0.01 < results["peak_memory_gib"]["host"] < 100


def test_files_agree_with_each_other(evaluated: tuple[dict[str, Any], Path], street: Path) -> None:
    results, out = evaluated
    assert sorted(path.name for path in out.iterdir()) == [
        "candidates.csv", "database.csv", "descriptors_database.npy", "descriptors_queries.npy", "outcomes.csv",
        "queries.csv", "results.json",
    ]  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["eval"]
    protocol = load_protocol("folder", street, 25)
    database, queries = (np.load(out / f"descriptors_{name}.npy") for name in ("database", "queries"))
    assert (database.dtype, database.shape, queries.shape) == (np.float32, (18, 32), (6, 32))
    table = read_candidates(out)
    assert tuple(table[0]) == CANDIDATE_COLUMNS
    assert len(table) == 6 * 10
    right = 0
    for query, name in enumerate(protocol.queries):
        lines = [line for line in table if line["query"] == name]
        assert [int(line["rank"]) for line in lines] == list(range(1, 11))
        scores = [float(line["pair_score"]) for line in lines]
        assert scores == sorted(scores, reverse=True)
        by_descriptor = sorted(lines, key=lambda line: int(line["descriptor_rank"]))
        similarities = np.sort(database @ queries[query])[::-1][:10]
        assert [float(line["descriptor_similarity"]) for line in by_descriptor] == pytest.approx(similarities, abs=1e-5)
        right += lines[0]["database"].startswith(f"database/{query}/")
    (figures,) = results["ground_truths"].values()
    assert figures["reranked_recall"]["1"] == pytest.approx(100 * right / 6, abs=1e-3)


def test_without_budget_the_result_is_the_same(
    evaluated: tuple[dict[str, Any], Path], export: Path, street: Path, tmp_path: Path
) -> None:
    results = evaluate_model(config(export, street, "eval.feature_budget_gib=0"), tmp_path / "eval")
    assert results["ground_truths"] == evaluated[0]["ground_truths"]
    ours, theirs = read_candidates(tmp_path / "eval"), read_candidates(evaluated[1])
    assert [line["database"] for line in ours] == [line["database"] for line in theirs]
    scores, expected = ([float(line["pair_score"]) for line in table] for table in (ours, theirs))
    assert scores == pytest.approx(expected, abs=1e-3)


def test_image_size_and_top_k_are_those_asked_for(export: Path, street: Path, tmp_path: Path) -> None:
    asked = config(export, street, "eval.image_size=42", "eval.top_k=100", "eval.recall_at=[1,18]")
    results = evaluate_model(asked, tmp_path / "eval")
    assert (results["image_size"], results["top_k"]) == (42, 18)
    (figures,) = results["ground_truths"].values()
    assert figures["reranked_recall"]["18"] == 100
    assert figures["unreachable"] == 0


def test_full_folder_is_refused_and_untouched(export: Path, street: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        evaluate_model(config(export, street), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_bad_image_is_told_and_once_it_is_mended_the_evaluation_goes_on(
    evaluated: tuple[dict[str, Any], Path], export: Path, street: Path, tmp_path: Path
) -> None:
    shutil.copytree(street, tmp_path / "street")
    bad = next((tmp_path / "street/queries").iterdir())
    whole = bad.read_bytes()
    bad.write_text("words")
    with pytest.raises(UserError, match=bad.name):
        evaluate_model(config(export, tmp_path / "street"), tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
    bad.write_bytes(whole)
    shutil.rmtree(tmp_path / "street" / "database" / "0")  # described before: nobody reads it again
    shutil.copytree(street / "database" / "1", tmp_path / "street" / "database" / "0")
    for theirs, name in zip(sorted((tmp_path / "street/database/0").iterdir()), names_of(street), strict=True):
        theirs.rename(theirs.with_name(name))
    evaluate_model(config(export, tmp_path / "street"), tmp_path / "eval")
    assert not (tmp_path / "eval.work").exists()
    for name in ("candidates.csv", "outcomes.csv", "descriptors_database.npy", "descriptors_queries.npy"):
        assert (tmp_path / "eval" / name).read_bytes() == (evaluated[1] / name).read_bytes()


def test_what_a_kill_at_the_very_end_leaves_is_removed(
    evaluated: tuple[dict[str, Any], Path], export: Path, street: Path, tmp_path: Path
) -> None:
    shutil.copytree(evaluated[1], tmp_path / "eval")
    work = tmp_path / "eval.work"
    work.mkdir()
    with pytest.raises(UserError, match="already holds something"):
        evaluate_model(config(export, street, "eval.patience=3"), tmp_path / "eval")
    assert work.exists()
    assert evaluate_model(config(export, street), tmp_path / "eval") == evaluated[0]
    assert not work.exists()
    with pytest.raises(UserError, match="already holds something"):
        evaluate_model(config(export, street), tmp_path / "eval")


def test_the_current_folder_takes_the_results(
    export: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    evaluate_model(config(export, street), Path("."))
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert (tmp_path / "here" / "results.json").exists()


def test_a_model_of_another_configuration_does_not_go_on(
    model: PairVPR, export: Path, street: Path, tmp_path: Path
) -> None:
    protocol, asked = load_protocol("folder", street, 25), config(export, street)
    known = identity(Describer(model, asked), protocol, asked, "weights")
    other = copy.deepcopy(model)
    other.config = replace(model.config, image_size=84)
    assert known != identity(Describer(other, replace(asked, image_size=70)), protocol, asked, "weights")


def names_of(street: Path) -> list[str]:
    return sorted(path.name for path in (street / "database" / "0").iterdir())


def test_candidates_come_back_from_their_file(evaluated: tuple[dict[str, Any], Path], street: Path) -> None:
    protocol = load_protocol("folder", street, 25)
    read = read_candidates_csv(evaluated[1] / "candidates.csv", protocol, 10)
    database, queries = (np.load(evaluated[1] / f"descriptors_{name}.npy") for name in ("database", "queries"))
    np.testing.assert_allclose(read.similarities, np.sort(queries @ database.T)[:, ::-1][:, :10], atol=2e-6)
    firsts = {line["query"]: line["database"] for line in read_candidates(evaluated[1]) if line["rank"] == "1"}
    assert [protocol.database[row] for row in read.reranked[:, 0]] == [firsts[name] for name in protocol.queries]


def test_a_query_is_searched_in_its_group_alone_and_answers_are_handed_in(
    model: PairVPR, export: Path, street: Path, tmp_path: Path
) -> None:
    whole = load_protocol("folder", street, 25)
    groups = np.array([0] * 4 + [1] * 14)  # of 18; the queries' places are 3 rows each
    secret = replace(
        whole, ground_truths={}, database_group=groups, query_group=np.array([0, 0, 1, 1, 1, 2]), takes_submission=True
    )
    results = evaluate(model, secret, config(export, street, "eval.index=flat"), tmp_path / "eval")
    assert (results["ground_truths"], results["calibration"], results["top_k"]) == ({}, None, 10)
    assert results["scored_per_query"] == (2 * 4 + 3 * 10 + 0) / 6
    read = read_candidates_csv(tmp_path / "eval" / "candidates.csv", secret, 10)
    for query, group in enumerate(secret.query_group):  # type: ignore[arg-type]
        rows = read.rows[query][read.rows[query] >= 0]
        assert len(set(rows)) == {0: 4, 1: 10, 2: 0}[int(group)]
        assert (groups[rows] == group).all()
    lines = (tmp_path / "eval" / "submission.txt").read_text().splitlines()
    assert [len(line.split()) - 1 for line in lines] == [4, 4, 10, 10, 10, 0]
    assert lines[0].split()[0] == Path(secret.queries[0]).stem
    assert lines[0].split()[1] == Path(secret.database[read.reranked[0, 0]]).stem


def test_what_makes_figures_worth_less_is_told(
    model: PairVPR, export: Path, street: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(street, tmp_path / "street")
    query = min((tmp_path / "street" / "queries").iterdir())
    shutil.copy(query, tmp_path / "street" / "database" / "0" / query.name)
    protocol = replace(load_protocol("folder", tmp_path / "street", 25), published_counts=(100, 6))
    results = evaluate(model, protocol, config(export, tmp_path / "street", "eval.top_k=30"), tmp_path / "eval")
    assert (results["deviation"], results["queries_in_database"]) == ("19 of 100 database images, 6 of 6 queries", 1)
    told = [record.message for record in caplog.records]
    assert len(told) == 3
    assert "folder is not the published split: it has 19 of 100 database images" in told[0]
    assert told[1] == "eval.top_k=30: the database holds 19 images; all of them are re-ranked"
    assert "1 of 6 queries are in the database themselves" in told[2]


@pytest.mark.parametrize(("head", "what"), [("descriptor_head", "descriptors"), ("pair_head", "pair scores")])
def test_a_model_that_gives_nan_is_told(
    model: PairVPR, export: Path, street: Path, tmp_path: Path, head: str, what: str
) -> None:
    diverged = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in getattr(diverged, head).parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(UserError, match=f"eval.model: gives {what} that are not finite"):
        evaluate(diverged, load_protocol("folder", street, 25), config(export, street), tmp_path / "eval")


def test_results_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="not of the format"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "override", ["eval.top_k=5", "eval.recall_at=[]", "eval.recall_at=[5,1]", "eval.workers=-1", "eval.precision=fp64"]
)
def test_values_without_sense_are_refused(export: Path, street: Path, override: str) -> None:
    with pytest.raises(UserError, match=override.split("=")[0]):
        config(export, street, override)
