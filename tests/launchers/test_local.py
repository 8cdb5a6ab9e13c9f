"""The real command line: what is wrong is one line and status 2, before anything is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import opened

from launchers.jobs import jobs
from launchers.local import main
from pairvpr_dist import PairVPR
from pairvpr_dist.errors import exit_on_user_error

PROGRAM = Path(__file__).parents[2] / "launchers" / "local.py"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written() -> list[Path]:
    return sorted(path for path in Path().rglob("*") if path.is_file())


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run; it must exit with status 2 and one line, which is returned, and write nothing."""
    before = written()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(lambda: main(arguments))
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert written() == before
    return captured.err


def test_the_program_itself_refuses_in_one_line() -> None:
    for arguments, told in (["stage1", "tiny", "trian.epochs=1"], "train.epochs"), (["--stage"], "local.py --help"):
        ended = subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.startswith("error: ")
        assert told in ended.stderr
        assert ended.stderr.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_help_shows_examples() -> None:
    program = [sys.executable, str(PROGRAM), "--help"]
    shown = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert "examples:" in shown
    assert "python launchers/local.py pipeline tiny" in shown


def test_unknown_stages_sizes_and_keys(few_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = f"data.shards={few_shards}"
    for arguments, told in [
        ([], "STAGE"),
        (["stage1"], "stage1 needs a size"),
        (["stagee1", "tiny"], "did you mean 'stage1'?"),
        (["stage1", "tinny", shards], "did you mean 'tiny'?"),
        (["stage1", "tiny", shards, "optim.learning_rate=1"], "unknown key 'optim.learning_rate'"),
        (["stage1", "tiny", shards, "train.epochs=many"], "train.epochs"),
        (["stage1", "tiny", shards, "surplus"], "write key=value"),
        (["stage1", "tiny"], "data.shards=..."),
        (["stage1", "tiny", shards, "model.image_size=225"], "must be a multiple of 14; the nearest is 224"),
        (["pipeline", "tiny", shards, "eval.data=x", "stage2.model.image_size=71"], "multiple of 14"),
        (["demo", "trian.epochs=1"], "train.epochs"),
    ]:
        assert told in refuse(arguments, capsys), arguments


def test_folders_that_are_missing_or_empty(
    few_shards: Path, export: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    good = [f"data.shards={few_shards}", "data.places_per_batch=6"]
    for name in ("gone", "empty"):
        for arguments in [
            ["stage1", "tiny", f"data.shards={name}"],
            ["stage1", "tiny", *good, f"data.validation={name}"],
            ["stage2", "tiny", *good, f"init.model={name}"],
            ["stage1", "tiny", *good, f"init.encoder={name}"],
            ["eval", "tiny", f"eval.model={export}", f"eval.data={name}"],
            ["eval", "tiny", f"eval.model={name}", f"eval.data={street}"],
            ["pipeline", "tiny", *good, f"eval.data={name}"],
        ]:
            assert name in refuse(arguments, capsys), arguments


def test_a_truncated_shard(few_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(few_shards, tmp_path / "cut")
    tar = next((tmp_path / "cut").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    assert tar.name in refuse(["stage1", "tiny", "data.shards=cut", "data.places_per_batch=6"], capsys)


def test_a_checkpoint_of_another_architecture(
    few_shards: Path, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["stage2", "tiny", f"data.shards={few_shards}", "data.places_per_batch=6", f"init.model={export}"]
    assert "a model of another architecture: decoder_dim is 48, here 96" in refuse(arguments, capsys)


def test_text_in_place_of_images_and_weights(
    export: Path, street: Path, few_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(street, tmp_path / "street")
    next((tmp_path / "street" / "database" / "0").iterdir()).write_text("words")
    (tmp_path / "words.pth").write_text("words")
    assert "not an image" in refuse(["eval", "tiny", f"eval.model={export}", "eval.data=street"], capsys)
    assert "words.pth" in refuse(["eval", "tiny", "eval.model=words.pth", f"eval.data={street}"], capsys)
    arguments = ["stage2", "tiny", f"data.shards={few_shards}", "data.places_per_batch=6", "init.model=words.pth"]
    assert "words.pth: not readable as weights" in refuse(arguments, capsys)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "eval"])
def test_an_output_folder_that_holds_something_else(
    few_shards: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    """It is told before the first stage starts, whichever stage's folder it is."""
    (tmp_path / "out" / stage).mkdir(parents=True)
    (tmp_path / "out" / stage / "thesis.tex").write_text("mine")
    arguments = ["tiny", f"data.shards={few_shards}", "data.places_per_batch=6", f"eval.data={street}", "run=out"]
    assert f"out/{stage}" in refuse(["pipeline", *arguments], capsys)
    assert (tmp_path / "out" / stage / "thesis.tex").read_text() == "mine"


def test_a_stage_that_has_ended_is_not_run_again(few_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["stage1", "tiny", [f"data.shards={few_shards}", "data.places_per_batch=6", "run=out"]]
    (config,) = jobs(*arguments)  # type: ignore[arg-type]
    PairVPR(config.model).save_pretrained(opened(config) / "export")
    before = (Path("out/stage1/export/model.safetensors")).stat().st_mtime_ns
    main(["stage1", "tiny", f"data.shards={few_shards}", "data.places_per_batch=6", "run=out"])
    assert "stage1: has ended before; its model is out/stage1/export" in capsys.readouterr().out
    assert Path("out/stage1/export/model.safetensors").stat().st_mtime_ns == before


def test_what_only_a_worker_can_find_is_told_in_one_line(few_shards: Path, tmp_path: Path) -> None:
    model = PairVPR(jobs("stage1", "tiny", [f"data.shards={few_shards}"])[0].model)
    model.save_pretrained(tmp_path / "whole")  # a whole model where an encoder is wanted
    command = [sys.executable, "launchers/local.py", "stage1", "tiny", f"data.shards={few_shards}"]
    command += ["data.places_per_batch=6", f"run={tmp_path / 'run'}"]
    command += [f"init.encoder={tmp_path / 'whole' / 'model.safetensors'}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    told = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert ended.returncode == 2
    assert len(told) == 1
    assert told[0].startswith(f"error: {tmp_path / 'whole' / 'model.safetensors'}: does not fit this model; missing:")
    assert "Traceback" not in ended.stderr
