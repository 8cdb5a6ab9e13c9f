"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pairvpr_dist.cli import known_verbs, run
from pairvpr_dist.errors import exit_on_user_error
from pairvpr_dist.training.history import STARTED, STOPPED, append_event


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run; it must exit with status 2 and one line, which is returned."""
    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(lambda: run(arguments))
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_eval_prints_the_table_and_writes_the_folder(
    export: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    run(["eval", "--model", str(export), "--data", str(street), "--top-k", "10", "--out", str(out), "eval.workers=0"])
    printed = capsys.readouterr().out
    assert "folder (6 queries, 18 database, split" in printed
    assert "top 10, 70 px" in printed
    assert str(out / "results.json") in printed
    assert (out / "candidates.csv").exists()


def test_eval_writes_below_runs_unless_told(
    export: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(["eval", "--model", str(export), "--data", str(street), "--image-size", "28", "eval.workers=0"])
    assert (tmp_path / "runs" / f"eval-{street.name}" / "results.json").exists()


def test_paths_are_taken_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("a: b", "[c]", "null", "12"):
        assert f"error: {path}: no such folder" in refuse(["eval", "--model", "none", "--data", path], capsys)


def test_match_prints_both_scores_and_their_sum(export: Path, street: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted(map(str, street.rglob("*.jpg")))[:2]
    run(["match", "--model", str(export), *images])
    similarity, total, forward, backward = (float(x.split()[-1]) for x in capsys.readouterr().out.splitlines())
    assert -1 <= similarity <= 1
    assert total == pytest.approx(forward + backward, abs=2e-4)
    assert forward != backward
    run(["match", "--model", str(export), images[0], images[0]])
    assert "similarity 1.0000" in capsys.readouterr().out


def test_inspect_tells_a_run_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "stage1"
    folder.mkdir()
    (folder / "config.yaml").write_text("stage: stage1\nsize: tiny\ntrain: {epochs: 3}\ndata: {places_per_batch: 6}\n")
    append_event(folder, STARTED, 0, processes=2, hosts=["n1"], job="7", total_steps=30, steps_per_epoch=10)
    (folder / "metrics.jsonl").write_text('{"step": 12, "loss": 0.25, "epoch": 1, "restarts": 0}\n')
    append_event(folder, STOPPED, 12)
    for path in (tmp_path, folder):
        run(["inspect", str(path)])
        shown = capsys.readouterr().out
        assert "stage1 tiny   stopped\n  epoch 2 of 3, step 12 of 30" in shown
        assert "2 processes on n1, job 7" in shown
        run(["inspect", str(path), "--json"])
        report = json.loads(capsys.readouterr().out)
        assert [stage["step"] for stage in report["stages"]] == [12]


def test_mistakes_are_one_line(export: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = ["eval", "--model", str(export), "--data", str(street)]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    (tmp_path / "words.jpg").write_text("words")
    cases = [
        ([], "VERB"),
        (["evil"], "evil"),
        (["eval"], "--model"),
        ([*good, "--image-size", "71"], "multiple of 14"),
        ([*good, "--top-k", "many"], "eval.top_k"),
        ([*good, "--protocol", "foldre"], "did you mean 'folder'"),
        ([*good, "eval.top_kk=3"], "did you mean 'eval.top_k'"),
        ([*good, "top_k=3"], "write eval.KEY=VALUE"),
        ([*good, "--out", str(tmp_path / "full")], "already holds something"),
        (["eval", "--model", str(export), "--data", str(tmp_path / "none")], "no such folder"),
        (["eval", "--model", str(tmp_path / "none.pth"), "--data", str(street)], "no such file"),
        ([*good[:1], "eval.workers=0", *good[1:], "eval.top_kk=3"], "did you mean 'eval.top_k'"),
        (["plan", "stage1", "tiny", "--gpus", "1", "trian.epochs=1"], "trian.epochs"),
        (["study", "strong", "--out", str(tmp_path / "out"), "trian.epochs=1"], "trian.epochs"),
        (["study", "strong", "--out", str(tmp_path / "out"), "weak"], "unrecognized arguments: weak"),
        (["inspect", str(tmp_path), "train.epochs=1"], "unrecognized arguments: train.epochs=1"),
        (["match", "--model", str(export), str(tmp_path / "words.jpg"), str(tmp_path / "words.jpg")], "not an image"),
        (["report", str(tmp_path)], "evaluate the run first"),
        (["inspect"], "PATH"),
        (["inspect", str(tmp_path / "none")], "no such folder"),
        (["inspect", str(tmp_path)], "holds no run"),
    ]
    for arguments, told in cases:
        assert told in refuse(arguments, capsys)


def test_help_shows_examples_without_loading_torch() -> None:
    program = "import sys\nfrom pairvpr_dist import cli\ntry: cli.main()\nfinally: assert 'torch' not in sys.modules"
    for verb in known_verbs():
        shown = subprocess.run(
            [sys.executable, "-c", program, verb, "--help"], capture_output=True, text=True, check=True
        )
        assert "examples:" in shown.stdout
        assert f"pairvpr {verb}" in shown.stdout
