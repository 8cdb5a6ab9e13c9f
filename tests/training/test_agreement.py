"""Ranks that do not run the same are told so before the first step, on every rank alike."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from small_runs import PLACES, small_config

import pairvpr_dist
from pairvpr_dist.config import to_yaml
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.training.agreement import Account, check_agreement, code_digests, find_fault
from shards.build import main as build

PROGRAM = Path(__file__).parent / "agreement_program.py"
PACKAGE = Path(pairvpr_dist.__file__).parent


def run_folder(folder: Path, shards: Path, *changes: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(small_config("stage1", shards, folder.parent / "run", changes)))
    return folder


def run_two(tmp_path: Path, code: list[Path], folders: list[list[Path]]) -> list[str]:
    """What two processes with their own code and folders said, one text a folder; both must say the same."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(code[rank]),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        command = [sys.executable, str(PROGRAM), str(tmp_path / f"said{rank}"), *map(str, folders[rank])]
        ranks.append(subprocess.Popen(command, env=environment))
    assert [process.wait() for process in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"said{rank}").read_text()) for rank in range(2))
    assert first == second
    said: list[str] = first
    return said


def test_what_differs_is_named_on_every_rank(city_shards: Path, tmp_path: Path) -> None:
    other_shards = tmp_path / "other" / "shards"
    build(["synthetic", "--places", str(PLACES), "--views", "4", "--size", "96", "--seed", "1", "--out",
           str(other_shards), "--workers", "1"])  # fmt: skip
    same = run_folder(tmp_path / "same", city_shards)
    rate = run_folder(tmp_path / "rate", city_shards, "optim.lr=0.5")
    city = run_folder(tmp_path / "city", other_shards)
    gone = run_folder(tmp_path / "gone", tmp_path / "no" / "shards")
    changed = other_code(tmp_path)
    code, with_config, with_shards, missing = run_two(
        tmp_path, [PACKAGE.parent, tmp_path], [[same] * 4, [same, rate, city, gone]]
    )
    me = socket.gethostname()
    ours, theirs = (code_digests(package)["code models/patches.py"] for package in (PACKAGE, changed.parents[1]))
    differs = f"code models/patches.py is {theirs}, of most {ours};"
    assert code.startswith(f"rank 1 on {me} does not run what most ranks run: {differs}")
    assert code.count("of most") == 1
    assert differs in with_config
    assert "configuration optim.lr is 0.5, of most" in with_config
    right, wrong = (ShardSet.open(where).manifest.digest[:12] for where in (city_shards, other_shards))
    assert f"content of data.shards[0] is {wrong}, of most {right};" in with_shards
    assert missing.startswith(f"rank 1 on {me}: {tmp_path / 'no' / 'shards'}")


def other_code(folder: Path) -> Path:
    """A copy of the package in `folder` with one file changed, as by a forgotten edit; returns that file."""
    shutil.copytree(PACKAGE, folder / "pairvpr_dist", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "configs", folder / "configs")
    changed = folder / "pairvpr_dist" / "models" / "patches.py"
    changed.write_text(changed.read_text() + "\n")
    return changed


def test_most_are_right_and_without_most_rank_0() -> None:
    def account(value: str) -> Account:
        return Account("h" + value, {"version of torch": value}, None)

    assert find_fault([account("2"), account("2")]) is None
    odd = find_fault([account("1"), account("2"), account("2")])
    assert odd is not None
    assert "rank 0 on h1 does not run what most ranks run: version of torch is 1, of most 2" in odd
    tie = find_fault([account("1"), account("2")])
    assert tie is not None
    assert "rank 1 on h2" in tie


def test_what_only_one_rank_has_is_a_difference() -> None:
    fault = find_fault([Account("a", {}, None), Account("b", {"code new.py": "12ab"}, None)])
    assert fault is not None
    assert "code new.py is 12ab, of most absent" in fault


def test_a_long_list_is_cut() -> None:
    values = {f"code {n}.py": "1" for n in range(9)}
    fault = find_fault([Account("a", values, None), Account("b", dict.fromkeys(values, "2"), None)])
    assert fault is not None
    assert fault.count("of most") == 3
    assert "and 6 more" in fault


def test_a_process_alone_agrees_with_itself(city_shards: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", city_shards)
    check_agreement(small_config("stage1", city_shards, folder), folder)
