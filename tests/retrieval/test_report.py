"""The report holds what the run holds, and fetches nothing."""

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
from pairvpr_dist.retrieval.curves import read_curves
from pairvpr_dist.retrieval.evaluate import evaluate_model
from pairvpr_dist.retrieval.protocols import load_protocol
from pairvpr_dist.retrieval.report import query_groups, read_firsts, rewrite_report, write_report


@pytest.fixture(scope="module")
def run(export: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training and evaluation leave it."""
    run = tmp_path_factory.mktemp("runs") / "a<b"
    given = [f"eval.model={export}", f"eval.data={street}"]
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


def test_report_is_self_contained(page: str) -> None:
    text = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)
    assert not re.search(r"https?:|//[a-z]|<link|<script|@import|url\((?!#)", text)
    sources = re.findall(r'(?:src|href)="(.{0,12})', page)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert page.startswith("<!doctype html>")


def test_report_shows_recall_of_every_evaluation(page: str, run: Path) -> None:
    results = json.loads((run / "eval/results.json").read_text())
    (figures,) = results["ground_truths"].values()
    assert page.index("<td>untrained</td>") < page.index("<td>trained</td>")
    for ranking in ("descriptor_recall", "reranked_recall"):
        cells = "".join(f"<td>{value:.1f}</td>" for value in figures[ranking].values())
        assert page.count(cells) >= 2
    assert f"split {results['split'][:8]}" in page
    assert "within 25 m" in page


def test_report_shows_curves_and_the_last_reconstruction(page: str, run: Path) -> None:
    assert page.count("<svg") == 4
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


def test_groups_hold_every_counted_query_and_answers_tell_distance(run: Path, street: Path) -> None:
    protocol = load_protocol("folder", street, 25)
    groups = query_groups(run / "eval", protocol)
    assert sum(group.queries for group in groups) == 6
    by_descriptor, by_score = read_firsts(run / "eval", protocol)
    firsts = list(zip(by_descriptor // 3 == np.arange(6), by_score // 3 == np.arange(6), strict=True))
    kinds = [(False, True), (True, False), (True, True), (False, False)]
    assert [group.queries for group in groups] == [firsts.count(kind) for kind in kinds]
    for group in groups:
        assert len(group.rows) == min(group.queries, 4)
        for query, *answers in group.rows:
            assert query.right is None
            for answer in answers:
                metres = int(answer.caption.split(", ")[1].removesuffix(" m"))
                assert answer.right == (metres <= 25)


def test_missing_parts_leave_their_section_out(run: Path, street: Path, tmp_path: Path) -> None:
    protocol = load_protocol("folder", street, 25)
    write_report(tmp_path, tmp_path / "out.html", [("alone", run / "eval")], protocol)
    page = (tmp_path / "out.html").read_text()
    assert "Stage 1" not in page
    assert "Reconstructions" not in page
    assert "untrained" not in page
    assert "Recall" in page


def test_another_split_is_refused(run: Path, street: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another split"):
        write_report(run, tmp_path / "out.html", [("x", run / "eval")], load_protocol("folder", street, 150))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="evaluate the run first"):
        rewrite_report(tmp_path)


def test_curves_pass_over_torn_lines_and_values_that_are_not_finite(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1.5}\n{"step": 4, "lo')
    (curve,) = read_curves(metrics)
    assert curve.last == {"training": 1.5}
    assert "currentColor" in curve.svg
    assert "http" not in curve.svg
    assert read_curves(tmp_path / "none.jsonl") == []
