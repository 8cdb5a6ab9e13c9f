import hashlib
from pathlib import Path

import pytest
from importing import importer, read
from photographs import save

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.errors import UserError
from shards import build
from shards.importers import Dropped, Found, gldv2

BY, SA = "https://creativecommons.org/licenses/by/3.0/", "https://creativecommons.org/licenses/by-sa/4.0/"


def identity(*seed: object) -> str:
    return hashlib.md5(repr(seed).encode()).hexdigest()[:16]


def file(name: str) -> str:
    return f"train/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


def write(root: Path, landmarks: dict[str, list[str]], licences: dict[str, str] | None = None) -> Path:
    root.mkdir(exist_ok=True)
    rows = [f"{landmark},{' '.join(names)}" for landmark, names in landmarks.items()]
    (root / "train_clean.csv").write_text("\n".join(["landmark_id,images", *rows]) + "\n")
    for seed, name in enumerate(name for names in landmarks.values() for name in names):
        save(root / file(name), seed)
    if licences is not None:
        lines = [f'{name},http://x/{name},"Doe, J.",{licence},File:x' for name, licence in licences.items()]
        (root / "train_attribution.csv").write_text("\n".join(["id,url,author,license,title", *lines]) + "\n")
    return root


def landmarks(count: int = 2, images: int = 4) -> dict[str, list[str]]:
    return {str(number): [identity(number, i) for i in range(images)] for number in range(1, count + 1)}


def test_a_place_is_a_landmark(tmp_path: Path) -> None:
    known = landmarks()
    places, dropped = read(gldv2, write(tmp_path, known))
    assert {key: {image.name for image in place} for key, place in places.items()} == {
        key: set(map(file, names)) for key, names in known.items()
    }
    assert dropped == []
    image = places["1"][0]
    assert image.size == (tmp_path / image.name).stat().st_size
    assert importer(gldv2, tmp_path).load(image.name) == (tmp_path / image.name).read_bytes()


def test_each_image_has_its_licence_in_whatever_order(tmp_path: Path) -> None:
    known = landmarks()
    first, second = known["1"][0], known["2"][0]
    elsewhere = {identity("other", i): BY for i in range(100)}
    write(tmp_path, known, {second: SA, **elsewhere, first: BY, "no id": BY})
    images = [image for place in read(gldv2, tmp_path)[0].values() for image in place]
    assert {image.name: image.licence for image in images if image.licence} == {file(first): BY, file(second): SA}


def test_without_attributions_no_licence_is_stated(tmp_path: Path) -> None:
    write(tmp_path, landmarks())
    assert {image.licence for place in read(gldv2, tmp_path)[0].values() for image in place} == {""}


def test_ids_of_all_64_bits_are_told_apart(tmp_path: Path) -> None:
    names = ["0" * 16, "f" * 16, "7" + "f" * 15, "8" + "0" * 15]
    write(tmp_path, {"1": names}, {name: f"licence {name}" for name in names})
    assert [image.licence for image in read(gldv2, tmp_path)[0]["1"]] == [f"licence {name}" for name in sorted(names)]


def test_a_landmark_of_many_thousand_images_is_read(tmp_path: Path) -> None:
    write(tmp_path, landmarks(1))
    missing = [identity("missing", i) for i in range(9000)]  # a field of 153,000 characters
    with (tmp_path / "train_clean.csv").open("a") as handle:
        handle.write(f"9,{' '.join(missing)}\n")
    _, dropped = read(gldv2, tmp_path)
    assert {item.what for item in dropped} == set(map(file, missing))
    assert {item.reason for item in dropped} == {"no such file"}


@pytest.mark.parametrize("hostile", ["../../../../secret", "/etc/passwd", "ABCDEF0123456789", "abc", "0" * 15 + "/"])
def test_what_is_no_id_is_dropped(tmp_path: Path, hostile: str) -> None:
    write(tmp_path, landmarks(1))
    with (tmp_path / "train_clean.csv").open("a") as handle:
        handle.write(f"9,{hostile}\n")
    places, dropped = read(gldv2, tmp_path)
    assert list(places) == ["1"]
    assert dropped == [Dropped(hostile, "its id is not 16 hexadecimal digits")]


def test_links_that_lead_out_of_the_source_are_dropped(tmp_path: Path) -> None:
    root = write(tmp_path / "gldv2", landmarks(1))
    linked = ["abc" + "0" * 13, "def" + "0" * 13]
    for name in linked:
        save(tmp_path / "secret" / f"{name}.jpg", 1)
    (root / "train" / "a" / "b").mkdir(parents=True, exist_ok=True)
    (root / "train" / "a" / "b" / "c").symlink_to(tmp_path / "secret")
    (root / file(linked[1])).parent.mkdir(parents=True, exist_ok=True)
    (root / file(linked[1])).symlink_to(tmp_path / "secret" / f"{linked[1]}.jpg")
    with (root / "train_clean.csv").open("a") as handle:
        handle.write(f"9,{' '.join(linked)}\n")
    assert read(gldv2, root)[1] == [Dropped(file(name), "leads out of the source") for name in linked]


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        (
            "train_clean.csv",
            "landmark_id,images\nx,0123456789abcdef\n",
            "line 2, column landmark_id: 'x' is not a",
        ),
        ("train_clean.csv", "landmark_id,images\n1\n", "line 2: 1 fields for 2 columns"),
        ("train_clean.csv", "landmark,images\n", "no column 'landmark_id' in its first line"),
        ("train_clean.csv", "", "no column 'landmark_id'"),
        ("train_clean.csv", "landmark_id,images\n", "no photograph of train_clean.csv found: it has no rows"),
        ("train_clean.csv", "landmark_id,images\n1,0123456789abcdef\n", "found: no such file; unpack the images into"),
        ("train_attribution.csv", "id,url\n", "no column 'license'"),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, table: str, text: str, message: str) -> None:
    (write(tmp_path, landmarks(1)) / table).write_text(text)
    with pytest.raises(UserError) as error:
        read(gldv2, tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sources_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        importer(gldv2, tmp_path / "none")
    with pytest.raises(UserError, match=r"not Google Landmarks v2; name the folder that holds train_clean\.csv"):
        importer(gldv2, tmp_path)


def test_landmarks_become_a_shard_set(tmp_path: Path) -> None:
    known = {**landmarks(), "3": [identity("alone")]}
    write(tmp_path, known, {name: BY for name in known["1"]})
    build.main(["gldv2", "--source", str(tmp_path), "--out", str(tmp_path / "set"), "--workers", "1"])
    shards = ShardSet.open(tmp_path / "set")
    assert shards.places["photographs"].tolist() == [4, 4]
    assert shards.manifest.licences == {BY: 4, "not stated": 4}
    assert shards.manifest.dropped == {"fewer than 4 images": 1}
    assert isinstance(next(iter(importer(gldv2, tmp_path).scan())), Found)
