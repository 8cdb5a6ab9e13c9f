"""`pairvpr import` and `pairvpr export`: what they print and write, and mistakes in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.cli import run
from pairvpr_dist.errors import exit_on_user_error
from pairvpr_dist.files import read_json

ReleasedState = Callable[[int], dict[str, Tensor]]


def test_a_released_file_goes_in_and_out(
    released_state: ReleasedState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(released_state(2), tmp_path / "theirs.pth")
    imported, out = tmp_path / "imported", tmp_path / "out"
    facts = ["--name", "Theirs", "--licence", "as they say", "--source", "a disk"]
    run(["import", str(tmp_path / "theirs.pth"), "--out", str(imported), *facts])
    found, digest, written = capsys.readouterr().out.splitlines()
    assert found.startswith("theirs.pth: stage2, dinov2_vits14_reg, 98 px, ")
    assert len(digest.removeprefix("sha256 ")) == 64
    assert "released.safetensors" in written
    card = (imported / "README.md").read_text()
    for told in ("# Theirs", "| licence | as they say |", "| source | a disk |", "| stage | stage2 |"):
        assert told in card
    run(["export", str(imported), "--out", str(out), "--format", "released"])
    theirs, again = (PairVPR.from_pretrained(path).state_dict() for path in (imported, out / "pairvpr.pth"))
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.items())


def test_an_encoder_alone_is_said_to_be_one(model: PairVPR, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(model.encoder.vit.state_dict(), tmp_path / "dinov2.safetensors")
    run(["import", str(tmp_path / "dinov2.safetensors"), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "encoder only, tiny, 70 px" in told
    assert "from scratch, as the file has none: decoder, pixel_head, descriptor_head, pair_head" in told
    assert "| stage | encoder only |" in (tmp_path / "out/README.md").read_text()


def test_what_was_measured_goes_into_the_card(
    export: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation, out = tmp_path / "eval", tmp_path / "out"
    rest = ["--data", str(street), "--top-k", "10", "--out", str(evaluation), "eval.workers=0"]
    run(["eval", "--model", str(export), *rest])
    run(["export", str(export), "--out", str(out), "--results", str(evaluation)])
    capsys.readouterr()
    results = read_json(evaluation / "results.json", "results")
    (truth,) = results["ground_truths"]
    assert f"| folder | `{results['split'][:12]}` | {truth} | 6 | 70 | 10 |" in (out / "README.md").read_text()
    facts = read_json(out / "config.json", "a configuration")["facts"]
    assert facts.get("calibration") == results["calibration"]
    assert PairVPR.from_pretrained(out).config == PairVPR.from_pretrained(export).config


def test_mistakes_are_one_line(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pth").write_text("some words")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    out = ["--out", str(tmp_path / "out")]
    cases = [
        (["import", str(tmp_path / "text.pth"), *out], "text.pth: not readable as weights"),
        (["import", str(tmp_path / "none.pth"), *out], "none.pth: no such file"),
        (["import", str(export), *out], "is a folder; name a file"),
        (["export", str(tmp_path / "none"), *out], "none: no such file"),
        (["export", str(export), *out, "--format", "onxn"], "onxn"),
        (["export", str(export), *out, "--results", str(tmp_path)], "results.json: no such file"),
        (["export", str(export), "--out", str(tmp_path / "full")], "already holds something"),
    ]
    for arguments, told in cases:
        with pytest.raises(SystemExit):
            exit_on_user_error(lambda arguments=arguments: run(arguments))
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
