"""Shard sets on real servers: what comes back is what lies in the folder, or one line says why not."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from file_server import FileServer, serve
from moto.server import ThreadedMotoServer
from small_shards import BuildShards, panorama_place, photo_place

from pairvpr_dist.data import remote
from pairvpr_dist.data.index import BadMember, ShardSet
from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import AugmentConfig, DataConfig, RemoteConfig


@pytest.fixture(scope="module")
def built(build_shards: BuildShards) -> Path:
    return Path(build_shards([*(photo_place(i, images=3) for i in range(8)), panorama_place(0, images=3)], 20_000))


@pytest.fixture
def server(built: Path, tmp_path: Path) -> Iterator[FileServer]:
    """A server of a copy to do damage to."""
    shutil.copytree(built, tmp_path / "served" / "set")
    with serve(tmp_path / "served") as files:
        yield files


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)


def settings(cache: Path, read: str = "ranges", attempts: int = 3, timeout: float = 5.0) -> RemoteConfig:
    return RemoteConfig(read, str(cache), 1.0, attempts, timeout)


def opened(server: FileServer, cache: Path, read: str = "ranges", **options: float) -> ShardSet:
    return ShardSet.open(f"{server.url}/set", settings(cache, read, **options))  # type: ignore[arg-type]


def contents(shards: ShardSet) -> list[bytes]:
    return [shards.read_member(row) for row in range(len(shards.members))]


@pytest.mark.parametrize("read", ["ranges", "shards"])
def test_members_are_those_of_the_folder(server: FileServer, cache: Path, built: Path, read: str) -> None:
    local, far = ShardSet.open(built), opened(server, cache, read)
    assert contents(far) == contents(local)
    assert far.manifest.digest == local.manifest.digest
    assert far.name == "set"
    assert np.array_equal(far.places, local.places)


def test_neighbouring_members_are_one_request(server: FileServer, cache: Path, built: Path) -> None:
    far, local = opened(server, cache), ShardSet.open(built)
    first = 24  # the columns of a panorama
    tar = far.manifest.shards[int(far.members["shard"][first])].name
    assert far.read_members(first, 4) == local.read_members(first, 4)
    assert server.requests[tar] == 1
    assert server.sent[tar] <= int(far.members["size"][first : first + 4].sum()) + 3 * 1024  # a header and padding each


def test_members_of_different_tars_are_read_apart(server: FileServer, cache: Path, built: Path) -> None:
    far = opened(server, cache)
    assert len(far.manifest.shards) > 1
    assert far.read_members(0, len(far.members)) == contents(ShardSet.open(built))


def test_whole_tars_and_the_index_are_fetched_once(server: FileServer, cache: Path) -> None:
    for _ in range(2):
        contents(opened(server, cache, "shards"))
    assert {name: n for name, n in server.requests.items() if n != 1} == {"manifest.json": 2}
    assert not list(cache.rglob("*.part"))


def test_a_set_travels_as_its_url(server: FileServer, cache: Path) -> None:
    shards = opened(server, cache)
    travelled = pickle.dumps(shards)
    assert len(travelled) < 500
    assert pickle.loads(travelled).read_member(5) == shards.read_member(5)


@pytest.mark.parametrize("read", ["ranges", "shards"])
@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "short", "reset", "stall", "flip"])
def test_faults_that_pass_are_not_seen(server: FileServer, cache: Path, built: Path, fault: str, read: str) -> None:
    local, far = ShardSet.open(built), opened(server, cache, read, timeout=0.5)
    for row in (0, len(far.members) - 1):
        tar = far.manifest.shards[int(far.members["shard"][row])].name
        server.misbehave(fault, tar, count=1 if fault == "flip" else 2)
        assert far.read_member(row) == local.read_member(row)
        assert server.requests[tar] >= (2 if fault == "flip" else 3)


@pytest.mark.parametrize("read", ["ranges", "shards"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", "3 attempts in . s failed: ClientResponseError: 500"),
        ("cut", "3 attempts in . s failed"),
        ("short", "3 attempts in . s failed"),
        ("reset", r"3 attempts in . s failed: [^\n]*(Disconnected|reset)"),
        ("drip", r"3 attempts in . s failed: .* (no answer within|only \d+ bytes came)"),
        ("stall", r"3 attempts in . s failed: .* no answer within data\.remote\.timeout=0\.3 s"),
        ("404", "cannot be read: ClientResponseError: 404"),
        ("403", "cannot be read: ClientResponseError: 403"),
    ],
)
def test_faults_that_stay_end_in_one_line(server: FileServer, cache: Path, fault: str, message: str, read: str) -> None:
    far = opened(server, cache, read, timeout=0.3)
    server.misbehave(fault, r"\.tar")
    with pytest.raises(UserError, match=rf"^{server.url}/set/shard-000000\.tar: {message}[^\n]*$"):
        far.read_member(0)
    final = fault in ("404", "403")
    if fault not in (
        "cut",
        "short",
        "reset",
    ):  # a stream goes on; aiohttp tries a reset again itself
        assert server.requests["shard-000000.tar"] == (1 if final else 3)
    assert not list(cache.rglob("*.part"))


def test_a_download_goes_on_where_it_broke_off(server: FileServer, cache: Path, built: Path) -> None:
    for ranges, cuts in ((True, 5), (False, 2)):
        server.ranges = ranges
        shutil.rmtree(cache, ignore_errors=True)
        far = opened(server, cache, "shards")
        server.misbehave("cut", "shard-000000", count=cuts)
        assert far.read_member(0) == ShardSet.open(built).read_member(0)


@pytest.mark.parametrize("read", ["ranges", "shards"])
def test_a_member_that_is_damaged_on_the_server_is_a_bad_member(
    server: FileServer, cache: Path, built: Path, read: str
) -> None:
    members = ShardSet.open(built).members
    tar = server.folder / "set" / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[int(members["offset"][1]) + 50] ^= 1
    tar.write_bytes(content)
    far = opened(server, cache, read)
    for _ in range(3):
        with pytest.raises(BadMember, match=r"shard-000000\.tar: place place000: checksum differs"):
            far.read_member(1)
    assert far.read_member(0) == ShardSet.open(built).read_member(0)
    if read == "shards":
        assert server.requests[tar.name] <= 4  # not one fetch for every read


def test_a_server_without_ranges_is_found_out_and_read_whole(server: FileServer, cache: Path, built: Path) -> None:
    server.ranges = False
    far = opened(server, cache)
    with pytest.raises(UserError, match=r"sends whole files only; set data\.remote\.read=shards$"):
        far.read_member(0)
    assert server.requests["shard-000000.tar"] == 1
    assert contents(opened(server, cache, "shards")) == contents(ShardSet.open(built))


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("manifest.json", lambda c: c[: len(c) // 2], "not readable as the manifest"),
        ("manifest.json", lambda c: b"[" * 100_000, "not readable as the manifest"),
        ("manifest.json", lambda c: b"1" * 5000, "not readable as the manifest"),
        ("manifest.json", lambda c: c.replace(b'"sha256": "', b'"sha256": "../'), "has no size or sha256"),
        ("manifest.json", lambda c: b" " * (64 * 2**20 + 1), "longer than"),
        ("members.npy", lambda c: c[:-1] + b"\xff", "its sha256 is not the manifest's"),
        ("members.npy", lambda c: c + b"more", "longer than"),
        ("members.npy", lambda c: c[:-1], r"2 attempts in . s failed: ShortAnswer: \d+ of \d+ bytes came"),
    ],
)
def test_what_a_server_says_of_the_set_is_checked(
    server: FileServer, cache: Path, file: str, edit, message: str
) -> None:
    path = server.folder / "set" / file
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{file}: [^\n]*{message}[^\n]*$"):
        opened(server, cache, attempts=2)
    assert not list(cache.rglob("*.part"))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("pipe:touch gone", "name a folder, or a URL of http, https, s3, gs"),
        ("file:///etc/passwd", "name a folder, or a URL"),
        ("ssh://host/path", "name a folder, or a URL"),
        ("http:///set", "names no host"),
        ("s3:bucket/set", "names no host or bucket"),
        ("https://me:hush@host/set", "^https://host/set: write it without user, password and query"),
        ("https://host/set?X-Amz-Signature=hush", "^https://host/set: write it without user, password and query"),
        ("s3://bucket/set#hush", "^s3://bucket/set: write it without"),
    ],
)
def test_other_urls_and_those_with_credentials_are_refused(cache: Path, where: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ShardSet.open(where, settings(cache))
    assert "hush" not in str(caught.value)
    assert not cache.exists()


def test_without_settings_no_url_is_read(server: FileServer) -> None:
    with pytest.raises(UserError, match="no URL is read here"):
        ShardSet.open(f"{server.url}/set")
    assert not server.requests


def test_a_server_that_is_not_there_is_told(cache: Path) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/set/manifest\.json: 2 attempts .*ClientConnectorError"):
        ShardSet.open("http://127.0.0.1:9/set", settings(cache, attempts=2))


def test_messages_hold_no_credentials() -> None:
    error = OSError("403, message='no',\n url='https://host/a.tar?X-Amz-Signature=hush&b=1' by http://me:hush@proxy:80")
    assert remote.describe(error) == "OSError: 403, message='no', url='https://host/a.tar' by http://proxy:80"


@pytest.mark.parametrize(("package", "extra"), [("s3fs", "s3"), ("gcsfs", "gs")])
def test_a_package_that_is_missing_names_the_extra(tmp_path: Path, package: str, extra: str) -> None:
    program = f"""
import sys
sys.modules["{package}"] = None
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.settings import RemoteConfig
ShardSet.open("{extra}://bucket/set", RemoteConfig("ranges", {str(tmp_path)!r}, 1.0, 2, 5.0))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"pip install 'pairvpr_dist[{extra}]'" in ended.stderr.splitlines()[-1]


def test_a_cache_that_cannot_be_written_is_told(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.remote\.cache: .*Not a directory"):
        opened(server, tmp_path / "file" / "cache")


def data_config(where: str, cache: Path, read: str, workers: int) -> DataConfig:
    augment = AugmentConfig(
        crop_area=[0.7, 1.0], crop_aspect=[0.75, 4 / 3], colour_jitter=0.4, rand_augment_ops=0, copies=False
    )
    return DataConfig([where], [], [], 4, 2, 2, False, workers, 9, 0.01, settings(cache, read), augment)


def epoch(config: DataConfig) -> list[Batch]:
    loader = EpochLoader(config, image_size=28, seed=7, rank=0, world=1)
    return list(loader.batches(0, loader.steps_per_epoch))


def assert_same_epoch(url: str, folder: Path, cache: Path) -> None:
    """Two workers read the URL, in both ways, as the training process reads the folder."""
    expected = epoch(data_config(str(folder), cache, "ranges", 0))
    for read in ("ranges", "shards"):
        batches = epoch(data_config(url, cache, read, workers=2))
        assert len(batches) == len(expected) > 1
        for one, other in zip(batches, expected, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.keys, other.keys)


def test_an_epoch_over_http_is_that_of_the_folder(server: FileServer, built: Path, cache: Path) -> None:
    server.misbehave("500", r"\.tar", count=2)
    assert_same_epoch(f"{server.url}/set", built, cache)


def test_an_outage_ends_an_epoch_in_one_line(server: FileServer, cache: Path) -> None:
    server.misbehave("503", r"\.tar")
    with pytest.raises(UserError, match=rf"^{server.url}/set/shard-\d+\.tar: 3 attempts [^\n]*$"):
        epoch(data_config(f"{server.url}/set", cache, "ranges", workers=2))


@pytest.fixture(scope="module")
def s3(built: Path) -> Iterator[str]:
    """The address of an S3 server that holds the set in a bucket."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    client.create_bucket(Bucket="streets")
    for path in built.iterdir():
        client.upload_file(str(path), "streets", f"sets/city/{path.name}")
    yield address
    moto.stop()


@pytest.fixture
def s3_environment(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual environment and nothing else."""
    monkeypatch.setattr(remote, "_connections", {})
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("s3_environment")
def test_an_epoch_from_s3_is_that_of_the_folder(built: Path, cache: Path) -> None:
    assert_same_epoch("s3://streets/sets/city", built, cache)


@pytest.mark.usefixtures("s3_environment")
def test_what_s3_does_not_have_or_give_is_told_at_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for where in ("s3://streets/sets/village", "s3://elsewhere/set"):
        with pytest.raises(UserError, match=rf"^{where}/manifest\.json: cannot be read: FileNotFoundError"):
            ShardSet.open(where, settings(cache))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(remote, "_connections", {})
    with pytest.raises(UserError, match="cannot be read: NoCredentialsError"):
        ShardSet.open("s3://streets/sets/city", settings(cache))


def test_an_s3_server_that_fails_is_told(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_connections", {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    server.misbehave("503", "manifest")
    with pytest.raises(UserError, match=r"^s3://set/manifest\.json: 2 attempts in . s failed: [^\n]*$"):
        ShardSet.open("s3://set", settings(cache, attempts=2))


@pytest.fixture
def gs(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server that answers as Google's does: content below /download, sizes as JSON."""
    objects = "storage/v1/b/streets/o/sets/city"
    shutil.copytree(built, tmp_path / "gs" / "download" / objects)
    (tmp_path / "gs" / objects).mkdir(parents=True)
    for path in built.iterdir():
        facts = {"bucket": "streets", "name": f"sets/city/{path.name}", "size": str(path.stat().st_size)}
        (tmp_path / "gs" / objects / path.name).write_text(json.dumps(facts))
    monkeypatch.setattr(remote, "_connections", {})
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve(tmp_path / "gs") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.mark.filterwarnings("ignore:GCS project not set")
def test_an_epoch_from_gs_is_that_of_the_folder(gs: FileServer, built: Path, cache: Path) -> None:
    assert_same_epoch("gs://streets/sets/city", built, cache)
    for fault in ("404", "403"):
        gs.misbehave(fault, "manifest")
        with pytest.raises(UserError, match=r"^gs://streets/sets/city/manifest\.json: cannot be read: [^\n]*$"):
            ShardSet.open("gs://streets/sets/city", settings(cache, attempts=2))
    gs.misbehave("503", "tar")
    with pytest.raises(UserError, match=r"city/shard-000000\.tar: 1 attempts in . s failed: [^\n]*$"):
        ShardSet.open("gs://streets/sets/city", settings(cache, attempts=1, timeout=0.5)).read_member(0)
