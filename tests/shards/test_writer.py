import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from listed import Listed, broken, pixels, place
from photographs import decode, save, tree

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.shard_format import Manifest
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import sole_owner
from shards import build
from shards.images import ImageOptions
from shards.importers import Dropped, Found
from shards.join import join
from shards.layout import Layout
from shards.tar import scan
from shards.workspace import Workspace
from shards.writer import Recipe, write_shards

ROOT = Path(__file__).resolve().parents[2]


def write(out: Path, *stream: Found | Dropped, layout: Layout | None = None, workers: int = 1) -> Manifest:
    manifest = write_shards(Recipe(Listed(stream), layout or Layout(), ImageOptions()), out, workers)
    assert manifest is not None
    return manifest


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_webdataset_reads_a_place_as_one_sample_with_place_json_first(tmp_path: Path) -> None:
    write(tmp_path / "set", *place("small", 3), *place("wide", 2, width=600, east=1.5, north=2.5, licence="CC0"))
    samples = list(webdataset.WebDataset(str(tmp_path / "set" / "shard-000000.tar"), shardshuffle=False))
    fields = [[field for field in sample if not field.startswith("__")] for sample in samples]
    assert [sample["__key__"] for sample in samples] == ["small", "wide"]
    assert fields[0] == ["place.json", "000.jpg", "001.jpg", "002.jpg"]
    assert fields[1] == ["place.json", *(f"00{i}.t0{c}.jpg" for i in range(2) for c in range(3))]
    info = json.loads(samples[1]["place.json"])
    assert (info["key"], info["dataset"], info["city"]) == ("wide", "set", "Lund")
    assert info["images"][0] == {
        "name": "wide/600-000", "width": 600, "height": 32, "columns": 3, "licence": "CC0", "east": 1.5, "north": 2.5,
        "heading": None, "time": None,
    }  # fmt: skip
    assert decode(samples[0]["002.jpg"]).shape == (32, 48, 3)


def test_places_lie_in_order_of_key_and_images_in_order_of_name(tmp_path: Path) -> None:
    stream = [*place("b", 2), *place("a", 3), *place("c", 2)]
    write(tmp_path / "one", *stream)
    write(tmp_path / "two", *random.Random(1).sample(stream, len(stream)))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert ShardSet.open(tmp_path / "one").keys.tolist() == [b"a", b"b", b"c"]


def test_a_large_place_is_split_into_parts_that_the_index_knows_as_one(tmp_path: Path) -> None:
    layout = Layout(shard_bytes=6_000, images_per_sample=3)
    write(tmp_path / "set", *place("a", 2), *place("big", 8), layout=layout)
    shards = ShardSet.open(tmp_path / "set")
    paths = [shards.shard_path(i) for i in range(len(shards.manifest.shards))]
    assert len(paths) == 2
    assert [m.key for path in paths for m in scan(path) if m.field == "place.json"] == [
        "a", "big", "big-part01", "big-part02",
    ]  # fmt: skip
    assert shards.places["images"].tolist() == [2, 8]
    assert shards.places["photographs"].tolist() == [2, 8]
    assert shards.places["shard"].tolist() == [0, 1]
    for image in range(8):
        assert np.abs(decode(shards.read_member(2 + image)) - pixels(image)).mean() < 4


def test_index_tells_what_the_importer_knows(tmp_path: Path) -> None:
    known = place("known", 2, east=500_000.25, north=6_000_000.5, heading=12.5, time=1e9)
    write(tmp_path / "set", *known, *place("unknown", 2, city=""), *place("wide", 2, 600, "Oslo", east=1.0))
    shards = ShardSet.open(tmp_path / "set")
    assert shards.images[["east", "north", "heading", "time"]][0].tolist() == (500_000.25, 6_000_000.5, 12.5, 1e9)
    assert np.isnan(list(shards.images[["east", "north", "heading", "time"]][2])).all()
    assert shards.places["city"].tolist() == [0, -1, 1]
    assert shards.places[["photographs", "panoramas"]].tolist() == [(2, 0), (2, 0), (0, 0)]  # no heading, no aim


def test_dropped_images_and_places_are_counted_and_listed(tmp_path: Path) -> None:
    manifest = write(
        tmp_path / "set",
        Dropped("elsewhere.jpg", "not in a place's folder"),
        *place("good", 2, licence="CC BY"),
        *place("bad", 1),
        broken("bad"),
        *place("lonely", 1),
        Found("good", "good/48-007", 1000, "Lund", licence="CC0"),
    )
    assert (manifest.places, manifest.images) == (1, 3)
    assert manifest.licences == {"CC BY": 2, "CC0": 1}
    assert manifest.dropped == {"fewer than 2 images": 2, "not in a place's folder": 1, "unreadable": 1}
    assert (tmp_path / "set" / "dropped.csv").read_text().splitlines() == [
        "what,reason",
        "elsewhere.jpg,not in a place's folder",
        "lonely,fewer than 2 images",
        "bad/broken,unreadable",
        "bad,fewer than 2 images",
    ]


def test_a_shard_without_usable_images_is_left_out(tmp_path: Path) -> None:
    stream = [*place("a", 2), broken("b"), Found("b", "b/more/broken", 1000), *place("c", 2)]
    manifest = write(tmp_path / "set", *stream, layout=Layout(shard_bytes=2000))
    assert [record.name for record in manifest.shards] == ["shard-000000.tar", "shard-000002.tar"]
    assert ShardSet.open(tmp_path / "set").places["shard"].tolist() == [0, 1]
    assert not (tmp_path / "set" / "shard-000001.tar").exists()


def test_nothing_stays_where_nothing_is_usable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable place in places of a test; dropped: fewer than 2 images 1"):
        write(tmp_path / "set", *place("lonely", 1))
    with pytest.raises(UserError, match="no usable place in places of a test; dropped: unreadable 2, fewer"):
        write(tmp_path / "set", broken("a"), Found("a", "a/more/broken", 1000))
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_named_twice_is_kept_once(tmp_path: Path) -> None:
    manifest = write(tmp_path / "set", *place("a", 2), *place("a", 1))
    assert (manifest.images, manifest.dropped) == (2, {"named twice in its place": 1})
    assert "a/48-000,named twice in its place" in (tmp_path / "set" / "dropped.csv").read_text()


def test_what_cannot_be_a_place_is_refused(tmp_path: Path) -> None:
    for key in ("a.b", "a/b", "a-part01", "", "x" * 121):
        with pytest.raises(UserError, match="is no key of a place"):
            write(tmp_path / "set", *place(key, 2))


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        write(tmp_path / "set", *place("a", 2))
    assert files(tmp_path / "set") == {"notes.txt": b"mine"}


def test_long_keys_fit_into_the_tar(tmp_path: Path) -> None:
    key = "k" * 120
    write(tmp_path / "set", *place(key, 3), layout=Layout(images_per_sample=2))
    assert ShardSet.open(tmp_path / "set").place_key(0) == key
    samples = webdataset.WebDataset(str(tmp_path / "set" / "shard-000000.tar"), shardshuffle=False)
    assert [sample["__key__"] for sample in samples] == [key, f"{key}-part01"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 places of 6 photographs and three kinds of trouble."""
    root = tree(tmp_path_factory.mktemp("source") / "photos", places=40, images=6)
    save(root / "place00" / "b.png", 7)
    (root / "place01" / "broken.jpg").write_text("not an image")
    (root / "alone.jpg").write_bytes((root / "place00" / "0.jpg").read_bytes())
    for path in root.rglob("*.jpg"):  # content to fill the tars: bytes after the end of an image are legal
        path.write_bytes(path.read_bytes() + bytes(30_000))
    return root


def command(source: Path, out: Path, *options: str) -> list[str]:
    return ["folder", "--source", str(source), "--out", str(out), "--shard-mb", "1", *options]


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a build by one worker."""
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    build.main(command(source, out, "--workers", "1"))
    return files(out)


def test_same_bytes_whatever_the_workers(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert len([name for name in undisturbed if name.endswith(".tar")]) > 5
    assert b"place01/broken.jpg,unreadable" in undisturbed["dropped.csv"]
    build.main(command(source, tmp_path / "set", "--workers", "3"))
    assert files(tmp_path / "set") == undisturbed


def test_killed_and_started_again_gives_the_same_bytes(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    program = [sys.executable, str(ROOT / "shards/build.py"), *command(source, out, "--workers", "2")]
    kept: set[int] = set()  # inodes of tars that a killed build left
    for wanted in (0, 2, 4):
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True)  # fmt: skip
        parts = Path(f"{out}.building/parts")
        while process.poll() is None and len(list(parts.glob("*.json"))) < wanted:
            time.sleep(0.005)
        time.sleep(random.Random(wanted).uniform(0, 0.05))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept |= {path.with_name(f"{path.stem}.tar").name for path in parts.glob("*.json")}
    inodes = {name: (Path(f"{out}.building/set") / name).stat().st_ino for name in kept}
    assert len(inodes) >= 2
    assert not out.exists()
    build.main(command(source, out, "--workers", "2"))
    assert files(out) == undisturbed
    assert {name: (out / name).stat().st_ino for name in inodes} == inodes  # finished shards are not done again
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_parts_joined_are_one_build(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    for part in (2, 3):
        build.main(command(source, out, "--part", f"{part}/3", "--workers", "1"))
    assert "part 3/3 is built; 3 shards of other parts are missing; then: python" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"shards are not built yet \(000000, 000003, .*; run their --part, then join"):
        build.main(["join", "--out", str(out)])
    elsewhere = tmp_path / "another machine" / "set"
    elsewhere.parent.mkdir()
    build.main(command(source, elsewhere, "--part", "1/3", "--workers", "1"))
    shutil.copytree(f"{elsewhere}.building", f"{out}.building", dirs_exist_ok=True)
    build.main(["join", "--out", str(out)])
    assert files(out) == undisturbed
    with pytest.raises(UserError, match="no build has begun here"):
        build.main(["join", "--out", str(out)])


def test_parts_of_two_sources_do_not_make_a_set(source: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(source, tmp_path / "changed" / "photos"))
    (changed / "place07" / "0.jpg").unlink()
    for name, of in (("one", source), ("two", changed)):
        build.main(command(of, tmp_path / name, "--part", "1/2" if name == "one" else "2/2", "--workers", "1"))
    shutil.copytree(tmp_path / "two.building", tmp_path / "one.building", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"shard-000000\.json: built from another source or with other options than"):
        build.main(["join", "--out", str(tmp_path / "one")])


def test_a_tar_that_was_not_copied_along_is_missing(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    for part in ("1/2", "2/2"):
        build.main(command(source, tmp_path / "set", "--part", part, "--workers", "1"))
    (tmp_path / "set.building/set/shard-000001.tar").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"1 of \d+ shards are not built yet \(000001\)"):
        build.main(["join", "--out", str(tmp_path / "set")])
    (tmp_path / "set.building/set/.places.npy.123.part").write_bytes(b"of a join that was killed")
    build.main(command(source, tmp_path / "set", "--workers", "1"))  # whoever is not a part does what is left
    assert files(tmp_path / "set") == undisturbed


def test_names_that_csv_would_not_keep_are_listed_in_one_line(tmp_path: Path) -> None:
    odd = [Found("a", f"a/{name}/broken", 1000) for name in ("x\ry", "x\ny", 'x,"y', "x\udcff")]
    write(tmp_path / "set", *place("a", 2), *odd, Dropped("z\r\n", "why"))
    rows = list(csv.reader((tmp_path / "set" / "dropped.csv").open(newline="")))
    assert sorted(row[0] for row in rows[1:]) == [
        'a/x,"y/broken', "a/x\\ny/broken", "a/x\\ry/broken", "a/x\\udcff/broken", "z\\r\\n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-images", "3"], "begun with --min-images 2, now 3; give the same, or name another --out"),
        (["--quality", "80"], "begun with --quality 95, now 80"),
        (["--short-side", "20"], "begun with --short-side not given, now 20"),
        (["--dataset", "other"], "begun with --dataset photos, now other"),
    ],
)
def test_a_build_does_not_go_on_with_other_options(
    source: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    build.main(command(source, tmp_path / "set", "--part", "1/9", "--workers", "1"))
    with pytest.raises(UserError, match=message):
        build.main(command(source, tmp_path / "set", "--part", "1/9", *options))


def test_a_build_does_not_go_on_with_another_source(source: Path, tmp_path: Path) -> None:
    build.main(command(source, tmp_path / "set", "--part", "1/9", "--workers", "1"))
    moved = tmp_path / "elsewhere" / "photos"
    shutil.copytree(source, moved)
    build.main(command(moved, tmp_path / "set", "--part", "2/9", "--workers", "1"))  # the same, in another place
    (moved / "place07" / "0.jpg").unlink()
    with pytest.raises(UserError, match="the source differs from the one that this build began with"):
        build.main(command(moved, tmp_path / "set", "--part", "3/9"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_build_that_is_told_to_stop_stops_in_the_middle(tmp_path: Path, number: int, status: int) -> None:
    city = ["synthetic", "--places", "400", "--views", "8", "--size", "200", "--shard-mb", "1", "--workers", "2"]
    program = [sys.executable, str(ROOT / "shards/build.py"), *city, "--out", str(tmp_path / "set")]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, start_new_session=True)
    parts = tmp_path / "set.building/parts"
    while process.poll() is None and not list(parts.glob("*.json")):
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, told = process.communicate()
    assert process.returncode == status
    assert "Traceback" not in told
    assert len(list(parts.glob("*.json"))) < 20
    assert not (tmp_path / "set").exists()


def test_a_source_that_was_mended_is_looked_at_again(tmp_path: Path) -> None:
    source = tree(tmp_path / "photos", places=1, images=1)
    with pytest.raises(UserError, match="no usable place"):
        build.main(command(source, tmp_path / "set"))
    save(source / "place00" / "b.jpg", 5)
    build.main(command(source, tmp_path / "set"))
    assert ShardSet.open(tmp_path / "set").manifest.images == 2


def test_a_source_that_goes_away_ends_the_build_and_drops_nothing(source: Path, tmp_path: Path) -> None:
    there = Path(shutil.copytree(source, tmp_path / "photos"))
    build.main(command(there, tmp_path / "set", "--part", "1/2", "--workers", "1"))
    there.rename(tmp_path / "elsewhere")
    recipe = tmp_path / "set.building"
    catalogue = next(recipe.glob("catalogue-1-of-2-*"))
    shutil.copy(catalogue, recipe / catalogue.name.replace("1-of-2", "2-of-2"))
    save(there / "other" / "0.jpg", 1)
    with pytest.raises(UserError, match=r"place.*jpg: found by the scan and gone now .*; bring the source back"):
        build.main(command(there, tmp_path / "set", "--part", "2/2", "--workers", "2"))


def test_a_file_too_large_to_hold_is_left_out(tmp_path: Path) -> None:
    source = tree(tmp_path / "photos", places=1, images=2)
    with (source / "place00" / "huge.jpg").open("wb") as handle:
        handle.truncate(300 * 2**30)
    build.main(command(source, tmp_path / "set"))
    assert ShardSet.open(tmp_path / "set").manifest.dropped == {"larger than 512 MiB": 1}


def test_two_builds_do_not_meet_in_one_folder(source: Path, tmp_path: Path) -> None:
    space = Workspace(tmp_path / "set")
    build.main(command(source, tmp_path / "set", "--part", "1/9", "--workers", "1"))
    whole, share = space.folder / ".lock", space.folder / ".lock-1-of-9"
    refused = pytest.raises(UserError, match="another process works here")
    with sole_owner(whole, "", shared=True), refused:  # a part is at work
        build.main(command(source, tmp_path / "set"))
    with sole_owner(whole, "", shared=True), refused:
        build.main(["join", "--out", str(tmp_path / "set")])
    with sole_owner(share, ""), refused:
        build.main(command(source, tmp_path / "set", "--part", "1/9"))
    with sole_owner(share, ""):
        build.main(command(source, tmp_path / "set", "--part", "2/9", "--workers", "1"))


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b"])
def test_a_part_that_is_none_is_refused(source: Path, tmp_path: Path, part: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        build.main(command(source, tmp_path / "set", "--part", part))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_ends_a_build_and_the_same_command_goes_on(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a file system")
    program = [sys.executable, str(ROOT / "shards/build.py"), *command(source, disk / "set", "--workers", "1")]
    try:
        full = subprocess.run(program, capture_output=True, text=True, check=False)
        assert full.returncode == 2
        assert "No space left on device" in full.stderr.splitlines()[-1]
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        subprocess.run(program, capture_output=True, check=True)
        assert files(disk / "set") == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)


def test_joining_twice_makes_no_second_set(tmp_path: Path) -> None:
    write(tmp_path / "set", *place("a", 2))
    with pytest.raises(UserError, match="no build has begun here"):
        join(Workspace(tmp_path / "set"))


def test_tars_hold_no_time_and_no_owner(tmp_path: Path) -> None:
    write(tmp_path / "set", *place("a", 2))
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        assert {(info.mtime, info.mode, info.type) for info in tar} == {(0, 0o644, tarfile.REGTYPE)}
