"""The report holds what the folder holds, and fetches nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.candidates import Candidates, read_candidates
from pairvpr_dist.retrieval.curves import read_curves
from pairvpr_dist.retrieval.evaluate import evaluate_model, read_results
from pairvpr_dist.retrieval.outcomes import outcomes_of, read_outcomes, write_outcomes
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from pairvpr_dist.retrieval.query_grid import query_groups
from pairvpr_dist.retrieval.report import rewrite_report


@pytest.fixture(scope="module")
def run(export: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training and evaluation leave it."""
    run = tmp_path_factory.mktemp("runs") / "a<b"
    given = [f"eval.model={export}", f"eval.data={street}", "eval.workers=0"]
    evaluate_model(load_config("eval", "tiny", given).eval, run / "eval")
    shutil.copytree(run / "eval", run / "eval-untrained")
    lines = [{"step": step, "loss": 1 / (step + 1)} for step in range(50)]
    lines += [{"step": 49, "validation/loss": 0.5, "validation/cross_view_gain": 0.125}]
    for stage in ("stage1", "stage2"):
        (run / stage).mkdir()
        (run / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "stage1/reconstructions").mkdir()
    for step in (100, 600):
        pixels = np.full((8, 8, 3), step % 256, dtype=np.uint8)
        Image.fromarray(pixels).save(run / f"stage1/reconstructions/step-{step:08d}.png")
    return run


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return rewrite_report(run).read_text()


def evaluation(run: Path, folder: Path, **changed: object) -> Path:
    """A copy of the run's evaluation, with other results.json."""
    shutil.copytree(run / "eval", folder)
    results = json.loads((folder / "results.json").read_text())
    results["config"] |= changed.pop("config", {})  # type: ignore[arg-type]
    (folder / "results.json").write_text(json.dumps(results | changed))
    return folder


def test_report_is_self_contained(page: str) -> None:
    text = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)
    assert not re.search(r"https?:|//[a-z]|<link|<script|@import|url\((?!#)", text)
    sources = re.findall(r'(?:src|href)="(.{0,12})', page)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert page.startswith("<!doctype html>")


def test_report_shows_recall_of_every_evaluation_with_intervals(page: str, run: Path) -> None:
    results = json.loads((run / "eval/results.json").read_text())
    (figures,) = results["ground_truths"].values()
    assert page.index("<td>untrained</td>") < page.index("<td>trained</td>")
    for ranking in ("descriptor_recall", "reranked_recall"):
        cells = r"<small>[\d.]+–[\d.]+</small></td>".join(f"<td>{value:.1f}" for value in figures[ranking].values())
        assert len(re.findall(cells, page)) >= 2
    assert f"Split {results['split'][:8]}" in page
    assert "within 25 m" in page
    for kind in ("won", "lost", "unreachable"):
        assert f"<td>{figures[kind]}</td>" in page


def test_report_draws_what_was_measured_and_the_last_reconstruction(page: str, run: Path) -> None:
    training = 4  # 2 panels a stage
    assert page.count("<svg") == training + 3
    for caption in ("Recall@N", "Recall@1 when fewer candidates are re-ranked", "Calibration of trained"):
        assert caption in page
    assert "cross-view gain" in page
    assert "validation 0.125" in page
    last, first = (
        base64.b64encode((run / f"stage1/reconstructions/step-{step:08d}.png").read_bytes()).decode()
        for step in (600, 100)
    )
    assert last in page
    assert first not in page


def test_report_escapes_names(page: str) -> None:
    assert "a&lt;b" in page
    assert "a<b" not in page


def test_a_lone_evaluation_has_a_report_too(run: Path, tmp_path: Path) -> None:
    folder = evaluation(run, tmp_path / "eval-street", deviation="18 of 20 database images")
    page = rewrite_report(folder).read_text()
    assert (folder / "report.html").exists()
    assert "<td>street</td>" in page
    assert "NOT THE PUBLISHED SPLIT (18 of 20 database images)" in page
    for missing in ("Stage 1", "Reconstructions", "untrained"):
        assert missing not in page
    with pytest.raises(UserError, match="evaluate the run first"):
        rewrite_report(tmp_path / "nothing")


def test_other_splits_stand_apart_and_missing_data_are_told(run: Path, tmp_path: Path) -> None:
    evaluation(run, tmp_path / "run/eval")
    evaluation(run, tmp_path / "run/eval-gone", split="f" * 64, config={"data": str(tmp_path / "nowhere")})
    evaluation(run, tmp_path / "run/eval-other", split="e" * 64, protocol="other")
    page = rewrite_report(tmp_path / "run").read_text()
    heads = re.findall(r"<h2>Recall, protocol (\w+)</h2>", page)
    assert heads == ["folder", "other", "folder"]
    assert page.count("<td>trained</td>") == 2  # recall and kinds of its own section, in no other
    assert f"{tmp_path / 'nowhere'}: no such folder" in page
    assert "holds another split now than was measured" in page
    assert len(re.findall(r"<h3><span class=.swatch", page)) == 5  # queries of the one split that is still there


def test_without_candidates_the_report_goes_without_what_needs_them_and_says_so(run: Path, tmp_path: Path) -> None:
    whole, folder = (evaluation(run, tmp_path / name) for name in ("eval-whole", "eval-bare"))
    path = folder / "candidates.csv"
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (None, "", "".join(lines[:-1]) + lines[-1].replace("queries/", "others/")):
        path.unlink() if damaged is None else path.write_text(damaged)
        page = rewrite_report(folder).read_text()
        assert "candidates.csv: no" in page
        assert "evaluate again" in page
        assert "re-ranked" in page
        assert page.count("<svg") < rewrite_report(whole).read_text().count("<svg")


def test_a_secret_ground_truth_has_pictures_without_judgement(run: Path, street: Path, tmp_path: Path) -> None:
    protocol = load_protocol("folder", street, 25)
    candidates = read_candidates(run / "eval/candidates.csv", protocol, 10)
    secret = Protocol("msls-challenge", street, protocol.database, protocol.queries, {})
    (group,) = query_groups(secret, candidates, {})
    assert group.queries == 6
    assert len(group.rows) == 4
    assert all(shot.right is None for row in group.rows for shot in row)
    folder = evaluation(run, tmp_path / "eval", ground_truths={}, calibration=None)
    write_outcomes(folder / "outcomes.csv", secret, candidates.rows, candidates.reranked)
    page = rewrite_report(folder).read_text()
    assert "submission.txt" in page
    assert "R@1" not in page


def test_groups_hold_every_counted_query_and_answers_tell_distance(run: Path, street: Path) -> None:
    protocol = load_protocol("folder", street, 25)
    candidates = read_candidates(run / "eval/candidates.csv", protocol, 10)
    outcomes = read_outcomes(run / "eval", read_results(run / "eval"))
    groups = query_groups(protocol, candidates, outcomes)
    (kinds,) = (of_truth.kinds for of_truth in outcomes.values())
    assert {group.kind: group.queries for group in groups} == {kind: rows.sum() for kind, rows in kinds.items()}
    assert sum(group.queries for group in groups) == 6
    for group in groups:
        assert len(group.rows) == min(group.queries, 4)
        for query, *answers in group.rows:
            assert query.right is None
            judged = [answer for answer in answers if answer.right is not None]
            told = [(answer.caption.split(",")[0].split(": ")[1] == "right") for answer in judged]
            assert told == [answer.right for answer in judged]
            for answer in judged:
                metres = int(answer.caption.split(", ")[1].removesuffix("\N{NO-BREAK SPACE}m"))
                assert answer.right == (metres <= 25)
            if group.kind in ("missed", "unreachable"):
                (shown,) = [answer for answer in answers if answer.right is None]
                assert int(shown.caption.split(", ")[-1].removesuffix("\N{NO-BREAK SPACE}m")) <= 25


def test_failures_are_told_apart_and_the_right_picture_is_shown(street: Path) -> None:
    protocol = load_protocol("folder", street, 25)
    k = 4
    right, wrong = np.arange(18).reshape(6, 3), np.roll(np.arange(18).reshape(6, 3), 1, axis=0)
    rows = np.concatenate([wrong, right[:, :1]], axis=1)
    rows[5, 3] = 9  # of the last query no positive is among the candidates
    rows[4] = [-1] * k  # and the one before has no candidates
    scores = np.tile(-np.arange(k, dtype=np.float32), (6, 1))
    scores[0, 3] = 1  # re-ranking finds the first query's
    candidates = Candidates(rows, scores, scores, np.argsort(-scores, axis=1, kind="stable"))
    groups = {
        group.kind: group
        for group in query_groups(protocol, candidates, outcomes_of(protocol, rows, candidates.reranked))
    }
    assert {kind: group.queries for kind, group in groups.items()} == {
        "won": 1, "lost": 0, "right": 0, "missed": 3, "unreachable": 2
    }  # fmt: skip
    assert all(row[3].caption.startswith("right one, at rank 4") for row in groups["missed"].rows)
    empty, _ = groups["unreachable"].rows
    assert empty[1].picture == ""
    assert "no candidate" in empty[1].caption
    assert empty[3].caption.startswith("would be right")
    assert empty[3].picture


def test_an_unreadable_picture_is_told(run: Path, street: Path, tmp_path: Path) -> None:
    data = tmp_path / "street"
    shutil.copytree(street, data)
    for image in (data / "queries").iterdir():
        image.write_text("words")
    folder = evaluation(run, tmp_path / "eval", config={"data": str(data)})
    with pytest.raises(UserError, match="not readable as an image"):
        rewrite_report(folder)
    assert not (folder / "report.html").exists()


def test_curves_pass_over_torn_lines_and_values_that_are_not_finite(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1.5}\n{"step": 4, "lo')
    (curve,) = read_curves(metrics)
    assert curve.last == {"training": 1.5}
    assert "currentColor" in curve.svg
    assert "http" not in curve.svg
    assert read_curves(tmp_path / "none.jsonl") == []
