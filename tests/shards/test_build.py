import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from photographs import save, tree

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.errors import UserError
from shards import build, verify

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"shards/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_folder_to_shards_to_verified_as_plain_scripts(tmp_path: Path) -> None:
    source = tree(tmp_path / "photos")
    (source / "place00" / "text.jpg").write_text("hello")
    save(source / "lonely" / "a.jpg", 1)
    built = run("build", "folder", "--source", source, "--out", tmp_path / "set", "--workers", 2)
    table, _, last = built.stdout.rpartition("time       ")
    assert re.fullmatch(r"\d:\d\d:\d\d\n", last)
    assert table == (
        "places     4\n"
        "images     12\n"
        "panoramas  0\n"
        "dropped    1 fewer than 2 images, 1 unreadable (dropped.csv)\n"
        "size       0.0 MB in 1 tars\n"
        "licence    not stated (12)\n"
        f"digest     {ShardSet.open(tmp_path / 'set').manifest.digest[:12]}\n"
    ), built.stderr
    verified = run("verify", tmp_path / "set", "--workers", 1)
    assert verified.stdout.startswith("sound: places 4  images 12  panoramas 0  tars 1  "), verified.stderr
    refused = run("build", "folder", "--source", source, "--out", tmp_path / "set")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {tmp_path / 'set'}: already holds something")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("main", "arguments"),
    [(build.main, []), (build.main, ["folder"]), (build.main, ["synthetic"]), (verify.main, [])],
)
def test_help_has_examples(
    main: Callable[[list[str]], None], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert end.value.code == 0
    assert "examples:\n  python shards/" in capsys.readouterr().out


@pytest.mark.parametrize("panoramas", [False, True])
def test_synthetic_city_goes_straight_into_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], panoramas: bool
) -> None:
    arguments = ["synthetic", "--places", "3", "--views", "2", "--size", "64", "--out", str(tmp_path / "set")]
    build.main([*arguments, "--workers", "1", *(["--panoramas"] if panoramas else [])])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["places     3", "images     6", f"panoramas  {6 if panoramas else 0}", "dropped    nothing"]
    shards = ShardSet.open(tmp_path / "set")
    assert shards.images["width"].tolist() == [3328 if panoramas else 64] * 6
    assert (shards.images["heading"] >= 0).all()
    assert len(set(shards.images["east"])) == 6
    assert verify.verify(tmp_path / "set", shards.manifest) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--short-side", "0"], "--short-side 0: must be at least 1"),
        (["--quality", "101"], "--quality 101: must be from 1 to 100"),
        (["--images-per-sample", "2000"], "--images-per-sample 2000: must be from 1 to 1000"),
    ],
)
def test_odd_options_are_refused(tmp_path: Path, option: list[str], message: str) -> None:
    source = tree(tmp_path / "photos", places=1)
    with pytest.raises(UserError, match=message):
        build.main(["folder", "--source", str(source), "--out", str(tmp_path / "set"), *option])
    assert not (tmp_path / "set").exists()


def test_options_reach_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tree(tmp_path / "photos", places=2, images=5), tmp_path / "set"
    options = ["--short-side", "32", "--licence", "CC0", "--dataset", "mine", "--city", "Lund", "--workers", "1"]
    build.main(["folder", "--source", str(source), "--out", str(out), "--images-per-sample", "2", *options])
    assert "licence    CC0 (10)" in capsys.readouterr().out.splitlines()
    manifest = ShardSet.open(out).manifest
    assert (list(manifest.licences), manifest.datasets, manifest.cities) == (["CC0"], ["mine"], ["Lund"])
    assert manifest.source == "folder photos, a place is a folder"
    assert set(ShardSet.open(out).images["height"]) == {32}
    assert verify.verify(out, manifest) == []
