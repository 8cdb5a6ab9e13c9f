from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from launchers import rendezvous
from launchers.rendezvous import leave, meet

WORLD = 3


def talk(path: Path, rank: int) -> list[str]:
    """Meet, tell the others the name of the job, and hear what they told."""
    store = meet(path, rank, WORLD)
    store.set(f"from {rank}", path.name)
    heard = [store.get(f"from {other}").decode() for other in range(WORLD)]
    leave(store, rank, WORLD)
    return heard


def test_two_jobs_on_one_machine_meet_at_the_same_time_each_its_own(tmp_path: Path) -> None:
    jobs = ["81234-0", "81235-0"]
    with ThreadPoolExecutor(WORLD * len(jobs)) as ranks:
        # The last ranks come first, and wait for the file.
        heard = {
            (job, rank): ranks.submit(talk, tmp_path / job, rank) for rank in reversed(range(WORLD)) for job in jobs
        }
    assert {key: future.result() for key, future in heard.items()} == {
        (job, rank): [job] * WORLD for job in jobs for rank in range(WORLD)
    }
    assert list(tmp_path.iterdir()) == []


def test_an_address_where_another_store_answers_is_not_taken(tmp_path: Path) -> None:
    other = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    other.set("start", "another")
    path = tmp_path / "81234-0"
    path.write_text(json.dumps({"hosts": ["localhost"], "port": other.port, "start": "gone"}))
    with ThreadPoolExecutor(WORLD) as ranks:
        later = [ranks.submit(talk, path, rank) for rank in (1, 2)]
        first = ranks.submit(talk, path, 0)
    assert [future.result() for future in (first, *later)] == [["81234-0"] * WORLD] * WORLD


def test_a_half_written_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "81234-0"
    path.write_text('{"hosts": ["loc')
    with ThreadPoolExecutor(WORLD) as ranks:
        later = [ranks.submit(talk, path, rank) for rank in (1, 2)]
        first = ranks.submit(talk, path, 0)
    assert [future.result() for future in (first, *later)] == [["81234-0"] * WORLD] * WORLD


def test_ranks_that_do_not_come_are_named_and_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.2)
    with pytest.raises(RuntimeError, match=r"1 of 3 processes have met; missing: rank 1, 2; given up"):
        meet(tmp_path / "81234-0", 0, WORLD)
    with pytest.raises(RuntimeError, match="rank 0 is missing"):
        meet(tmp_path / "81235-0", 1, WORLD)


def test_a_rank_that_does_not_leave_is_named_with_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "81234-0"
    with ThreadPoolExecutor(2) as ranks:
        stores = [ranks.submit(meet, path, rank, 2) for rank in range(2)]
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.2)
    with pytest.raises(RuntimeError, match=rf"have left; missing: rank 1 \({socket.gethostname()}\)"):
        leave(stores[0].result(), 0, 2)
