"""Faults injected for real into runs of two processes: nothing is lost, the result is the same bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from launched_runs import ROOT, STEPS, Launched, assert_same_end, command, finish

from pairvpr_dist.training.checkpoint import name_of
from pairvpr_dist.training.history import read_history

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]
CHANGES = ["launch.processes=2"]
Whole = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def whole(city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Stage folders of runs that nothing disturbed, by stage and ZeRO stage."""
    ended: dict[tuple[str, int], Path] = {}

    def run(stage: str, zero: int) -> Path:
        if (stage, zero) not in ended:
            folder = tmp_path_factory.mktemp("whole")
            finish(command(stage, city_shards, folder, [*CHANGES, f"train.zero_stage={zero}"]))
            ended[stage, zero] = folder / stage
        return ended[stage, zero]

    return run


def events(folder: Path) -> list[str]:
    return [line["event"] for line in read_history(folder) if line["event"] != "checkpoint"]


def begun(folder: Path, starts: int) -> bool:
    return events(folder).count("started") == starts


@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        ("stage1", 2),
        *(
            pytest.param(stage, zero, marks=pytest.mark.slow)
            for stage in ("stage1", "stage2")
            for zero in range(4)
            if (stage, zero) != ("stage1", 2)
        ),
    ],
)
def test_all_processes_killed_while_a_checkpoint_is_written(
    city_shards: Path, tmp_path: Path, whole: Whole, stage: str, zero: int
) -> None:
    """By kill -9, at the first moment that the half-written folder is seen; the next start removes it."""
    arguments = command(stage, city_shards, tmp_path, [*CHANGES, f"train.zero_stage={zero}"])
    run = Launched(arguments)
    checkpoints = tmp_path / stage / "checkpoints"
    run.until_step(tmp_path / stage, 8)
    run.until(lambda: any(checkpoints.glob(".step-*.part")))
    run.kill()
    assert not (tmp_path / stage / "export").exists()
    finish(arguments)
    assert not list(checkpoints.glob(".*"))
    assert_same_end(tmp_path / stage, whole(stage, zero), stage)


def test_one_process_killed_is_started_again(city_shards: Path, tmp_path: Path, whole: Whole) -> None:
    """By kill -9, at a random moment; the launcher alone goes on."""
    run = Launched(command("stage1", city_shards, tmp_path, [*CHANGES, "train.zero_stage=2"]))
    run.until_step(tmp_path / "stage1", random.randrange(4, 36, 4))
    random.choice(run.workers()).kill()
    status, out = run.wait()
    assert status == 0, out
    assert "ended with signal 9; starting again from the last checkpoint" in out
    assert "Traceback" not in out
    assert events(tmp_path / "stage1") == ["started", "failed", "started", "ended"]
    assert_same_end(tmp_path / "stage1", whole("stage1", 2), "stage1")


@pytest.mark.slow
def test_killed_at_ten_random_moments(city_shards: Path, tmp_path: Path, whole: Whole) -> None:
    """By kill -9 of all processes, at the start, in a step or in a save; some starts come to no new checkpoint."""
    arguments = command("stage1", city_shards, tmp_path, [*CHANGES, "train.zero_stage=2"])
    kills = 0
    while kills < 10 and not (tmp_path / "stage1" / "export").exists():
        run = Launched(arguments)
        run.until(partial(begun, tmp_path / "stage1", kills + 1))
        time.sleep(random.uniform(0, 0.6))
        run.kill()
        kills += 1
    finish(arguments)
    assert kills > 3, "the run ended too soon for the test to tell much"
    assert_same_end(tmp_path / "stage1", whole("stage1", 2), "stage1")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)])
def test_asked_to_stop_it_saves_and_goes_on(
    city_shards: Path, tmp_path: Path, whole: Whole, number: signal.Signals
) -> None:
    """Every process of the job gets the signal, several times, data workers too, as from SLURM."""
    arguments = command("stage1", city_shards, tmp_path, [*CHANGES, "train.zero_stage=2", "data.workers=1"])
    run = Launched(arguments)
    run.until_step(tmp_path / "stage1", 8)
    for _ in range(3):
        for process in [*run.look(), run.launcher]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.send_signal(number)
    status, out = run.wait()
    assert status == 128 + number, out
    assert "Traceback" not in out
    assert "stage1: stopped; the same command goes on from the last checkpoint" in out
    assert events(tmp_path / "stage1") == ["started", "signalled", "stopped"]
    stopped = read_history(tmp_path / "stage1")[-1]["step"]
    assert (tmp_path / "stage1" / "checkpoints" / "latest").read_text().strip() == name_of(stopped)
    assert 8 <= stopped < STEPS
    finish(arguments)
    assert_same_end(tmp_path / "stage1", whole("stage1", 2), "stage1")


@pytest.mark.parametrize("file", ["rank-0001.safetensors", pytest.param("manifest.json", marks=pytest.mark.slow)])
def test_a_checkpoint_cut_short_is_passed_over(city_shards: Path, tmp_path: Path, whole: Whole, file: str) -> None:
    arguments = command("stage1", city_shards, tmp_path, [*CHANGES, "train.zero_stage=2"])
    run = Launched(arguments)
    run.until_step(tmp_path / "stage1", 12)
    run.kill()
    checkpoints = tmp_path / "stage1" / "checkpoints"
    newest = max(checkpoints.glob("step-*"))
    (newest / file).write_bytes((newest / file).read_bytes()[:-7])
    assert f"checkpoint {newest} is damaged" in finish(arguments)
    assert_same_end(tmp_path / "stage1", whole("stage1", 2), "stage1")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for two checkpoints of 11 MB, but not for a third."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    city_shards: Path, small_disk: Path, tmp_path: Path, whole: Whole
) -> None:
    arguments = command("stage1", city_shards, small_disk, [*CHANGES, "train.zero_stage=2"])
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    checkpoints = small_disk / "stage1" / "checkpoints"
    assert ended.returncode == 2, ended.stderr
    assert len([line for line in ended.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in ended.stderr
    assert f"{checkpoints}: no checkpoint could be written (rank " in ended.stderr
    assert "No space left on device" in ended.stderr
    assert f"the last good one is {name_of(8)}; make room and start the same command again" in ended.stderr
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", name_of(4), name_of(8)]
    subprocess.run(["mount", "-o", "remount,size=600m", str(small_disk)], check=True)
    finish(arguments)
    assert_same_end(small_disk / "stage1", whole("stage1", 2), "stage1")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_processes_do_not_outlive_their_launcher(city_shards: Path, tmp_path: Path, number: signal.Signals) -> None:
    """They would train in the same folder beside those of the next start."""
    run = Launched(command("stage1", city_shards, tmp_path, [*CHANGES, "train.max_steps=100000"]))
    run.until_step(tmp_path / "stage1", 4)
    processes = run.look()
    run.launcher.send_signal(number)
    run.launcher.wait()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def test_a_fault_that_comes_back_ends_the_run(city_shards: Path, tmp_path: Path) -> None:
    """A start that fails before any new checkpoint is made again `launch.max_restarts` times only."""
    changes = [*CHANGES, "launch.max_restarts=1", "train.hang_timeout=0"]
    arguments = command("stage1", city_shards, tmp_path, [*changes, "train.checkpoint_every=1000"])
    run = Launched(arguments)
    for start in (1, 2):
        run.until(partial(begun, tmp_path / "stage1", start))
        run.workers()[0].kill()
    status, out = run.wait()
    assert status == 2
    assert "process 0 ended with signal 9 (its own output is above), and 2 starts in a row made no checkpoint" in out
    assert events(tmp_path / "stage1") == ["started", "failed", "started", "failed"]


def test_the_self_check_changes_nothing_and_leaves_nothing(city_shards: Path, tmp_path: Path, whole: Whole) -> None:
    said = finish(command("stage1", city_shards, tmp_path, [*CHANGES, "train.zero_stage=2", "train.self_check=true"]))
    assert "self-check: one step, saved and loaded" in said
    assert not (tmp_path / "stage1" / "self_check").exists()
    assert_same_end(tmp_path / "stage1", whole("stage1", 2), "stage1")
