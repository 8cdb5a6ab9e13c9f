"""The cache under real processes: many at once, killed ones, and no more room than they need."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_server import FileServer, serve

from pairvpr_dist.data.remote import Remote
from pairvpr_dist.data.shard_cache import FileCache
from pairvpr_dist.data.shard_format import FileRecord
from pairvpr_dist.data.storage import CachedFiles
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import RemoteConfig

TARS = 8
SIZE = 300_000

# Reads bytes of tars at random, COUNT of them, from URL through CACHE of ROOM tars, and compares them with the folder.
READER = """
import random, sys
from pathlib import Path
from test_shard_cache import cached, record
url, cache, folder, room, count, seed = sys.argv[1:]
files, draws = cached(url, Path(cache), float(room)), random.Random(int(seed))
for _ in range(int(count)):
    path = draws.choice(sorted(Path(folder).glob("*.tar")))
    offset = draws.randrange(path.stat().st_size - 100)
    expected = path.read_bytes()[offset : offset + 100]
    assert files.read(record(path), offset, 100) == expected
print("done")
"""


def record(path: Path) -> FileRecord:
    content = path.read_bytes()
    return FileRecord(path.name, len(content), hashlib.sha256(content).hexdigest())


def cached(url: str, cache: Path, room: float) -> CachedFiles:
    """Files through a cache with room for so many tars."""
    return CachedFiles(Remote(url, RemoteConfig("shards", str(cache), room * SIZE / 2**30, 3, 10.0)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(TARS):
        (folder / f"shard-{number:06d}.tar").write_bytes(draws.bytes(SIZE))
    with serve(folder) as files:
        yield files


def start_reader(server: FileServer, cache: Path, room: float, count: int, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, server.url, cache, server.folder, str(room), str(count), str(seed)]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    return subprocess.Popen(
        list(map(str, command)), text=True, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    )


def tars(cache: Path) -> list[Path]:
    return sorted((cache / "tars").glob("*.tar"))


def parts(cache: Path) -> list[Path]:
    return sorted((cache / "tars").glob("*.part"))


def wait_until(condition: object, process: subprocess.Popen[str]) -> None:
    while not condition():  # type: ignore[operator]
        assert process.poll() is None
        time.sleep(0.01)


def test_many_processes_fetch_each_tar_once(server: FileServer, tmp_path: Path) -> None:
    readers = [start_reader(server, tmp_path / "cache", TARS, 60, seed) for seed in range(4)]
    assert [reader.communicate()[0] for reader in readers] == ["done\n"] * 4
    assert max(server.requests.values()) == 1
    assert [path.stem for path in tars(tmp_path / "cache")] == sorted(
        record(path).sha256 for path in server.folder.iterdir()
    )


@pytest.mark.parametrize("room", [1, 2.5])
def test_the_cache_stays_below_its_limit_under_many_processes(server: FileServer, tmp_path: Path, room: float) -> None:
    """Every reader wants all tars, in its own order; files vanish under their hands."""
    cache = tmp_path / "cache"
    readers = [start_reader(server, cache, room, 12, seed) for seed in range(3)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        sizes = 0
        for path in [*parts(cache), *tars(cache)]:  # a part that becomes a tar meanwhile may count twice, never not
            try:
                sizes += path.stat().st_size
            except FileNotFoundError:
                continue
        most = max(most, sizes)
        time.sleep(0.005)
    assert [reader.communicate()[0] for reader in readers] == ["done\n"] * 3
    assert sum(path.stat().st_size for path in tars(cache)) <= room * SIZE
    assert most <= (room + 1) * SIZE
    assert not parts(cache)


def test_the_least_recently_used_tar_goes(server: FileServer, tmp_path: Path) -> None:
    files = cached(server.url, tmp_path / "cache", 3)
    first, second, third, fourth = (record(path) for path in sorted(server.folder.iterdir())[:4])
    for tar in (first, second, third, first, fourth):
        files.read(tar, 0, 10)
        time.sleep(0.02)  # times of files are coarse
    assert {path.stem for path in tars(tmp_path / "cache")} == {tar.sha256 for tar in (first, third, fourth)}


def test_a_killed_download_leaves_nothing_that_counts(server: FileServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server.misbehave("stall", r"\.tar")
    for seed in range(3):
        reader = start_reader(server, cache, 1, 1, seed)
        wait_until(lambda: any(part.stat().st_size == SIZE for part in parts(cache)), reader)
        os.kill(reader.pid, signal.SIGKILL)
        reader.communicate()
        assert not tars(cache)
        assert len(parts(cache)) == 1  # the one before gave way to this one's
    server.misbehave("", "")
    reader = start_reader(server, cache, 1, 5, seed=9)
    assert reader.communicate()[0] == "done\n"
    assert not parts(cache)


def test_who_waits_for_a_killed_download_takes_it_over(server: FileServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for path in sorted(server.folder.iterdir())[1:]:
        path.unlink()
    server.misbehave("stall", r"\.tar", count=1)
    first = start_reader(server, cache, 2, 3, seed=0)
    wait_until(lambda: server.requests.total() == 1, first)
    second = start_reader(server, cache, 2, 3, seed=1)
    wait_until(lambda: _sleeps_in_flock(second.pid), second)
    assert server.requests.total() == 1
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.communicate()[0] == "done\n"
    assert not parts(cache)


def _sleeps_in_flock(pid: int) -> bool:
    """Whether a lock that the process asked for is held by another."""
    return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_tar_is_fetched_anew_when_its_bytes_were_wrong(server: FileServer, tmp_path: Path) -> None:
    files = cached(server.url, tmp_path / "cache", 3)
    path = sorted(server.folder.iterdir())[0]
    tar = record(path)
    files.read(tar, 0, 10)
    tars(tmp_path / "cache")[0].write_bytes(bytes(SIZE))  # a bad disk
    assert files.read(tar, 0, 10) == bytes(10)
    assert files.read(tar, 0, 10, again=True) == path.read_bytes()[:10]


def test_a_cache_smaller_than_a_tar_is_refused(server: FileServer, tmp_path: Path) -> None:
    files = cached(server.url, tmp_path / "cache", 0.9)
    with pytest.raises(UserError, match=r"^data\.remote\.cache_gib=.*: shard-000000\.tar alone takes"):
        files.read(record(server.folder / "shard-000000.tar"), 0, 10)
    assert not server.requests
    assert not parts(tmp_path / "cache")


def test_leftovers_beside_the_index_go_too(server: FileServer, tmp_path: Path) -> None:
    left = tmp_path / "index" / "0.part"
    index = FileCache(left.parent)
    left.write_bytes(b"left by a process that was killed")
    path = server.folder / "shard-000000.tar"
    with index.opened(record(path), lambda: iter([path.read_bytes()])) as descriptor:
        assert os.pread(descriptor, 10, 0) == path.read_bytes()[:10]
    assert not left.exists()
