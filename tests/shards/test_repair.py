import shutil
from pathlib import Path

import pytest
from photographs import save, tree

from pairvpr_dist.errors import UserError
from shards import build, verify

FILES = ("shard-000001.tar", "places.npy", "keys.npy", "images.npy", "members.npy", "dropped.csv")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tree(tmp_path_factory.mktemp("repair") / "photos", places=9, images=4)
    for path in root.rglob("*.jpg"):  # content to fill the tars: bytes after the end of an image are legal
        path.write_bytes(path.read_bytes() + bytes(70_000))
    (root / "place03" / "broken.jpg").write_text("not an image")
    save(root / "lonely" / "0.jpg", 1)
    return root


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    build.main(command(source, out))
    return out


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "set"))


def command(source: Path, out: Path, *options: str) -> list[str]:
    return ["folder", "--source", str(source), "--out", str(out), "--shard-mb", "1", "--workers", "1", *options]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 0xFF
    elif how == "truncated":
        del content[len(content) // 2 :]
    path.write_bytes(content)
    if how == "deleted":
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_made_again(
    source: Path, built: Path, folder: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    damage(folder / name, how)
    build.main(command(source, folder, "--repair"))
    assert capsys.readouterr().out == f"{folder}: repaired {name}\n"
    assert files(folder) == files(built)
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_all_files_at_once(source: Path, built: Path, folder: Path) -> None:
    for name in FILES:
        damage(folder / name, "flipped")
    build.main(command(source, folder, "--repair", "--workers", "2"))
    assert files(folder) == files(built)


def test_verify_names_the_command_that_repairs(source: Path, built: Path, folder: Path) -> None:
    damage(folder / "shard-000001.tar", "flipped")
    with pytest.raises(UserError, match=r"rebuild shard-000001\.tar: python shards/build\.py folder .* --repair"):
        verify.main([str(folder), "--workers", "1"])
    build.main(command(source, folder, "--repair"))
    verify.main([str(folder), "--workers", "1"])


def test_a_sound_set_is_left_alone(source: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build.main(command(source, folder, "--repair"))
    assert capsys.readouterr().out == f"{folder}: nothing to repair\n"
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_source_is_found_out_and_nothing_touched(source: Path, folder: Path, tmp_path: Path) -> None:
    damage(folder / "shard-000001.tar", "flipped")
    damage(folder / "members.npy", "flipped")
    before = files(folder)
    changed = Path(shutil.copytree(source, tmp_path / "changed" / "photos"))
    for path in changed.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match="the source has changed since"):
        build.main(command(changed, folder, "--repair"))
    assert files(folder) == before


def test_other_options_and_other_importers_are_refused(source: Path, folder: Path) -> None:
    damage(folder / "shard-000001.tar", "flipped")
    with pytest.raises(UserError, match="built with --quality 95, now 50"):
        build.main(command(source, folder, "--repair", "--quality", "50"))
    with pytest.raises(UserError, match="by the importer folder, not synthetic"):
        build.main(["synthetic", "--places", "2", "--out", str(folder), "--repair"])


def test_a_part_of_a_repair_is_refused(source: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="leave --part out"):
        build.main(command(source, folder, "--repair", "--part", "1/2"))


def test_a_damaged_manifest_cannot_be_repaired(source: Path, folder: Path) -> None:
    damage(folder / "manifest.json", "truncated")
    with pytest.raises(UserError, match="not readable as the manifest"):
        build.main(command(source, folder, "--repair"))
