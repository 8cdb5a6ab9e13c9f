"""A run's state from its folder: what is written, half-written, long, old or at work at this moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import overrides

from pairvpr_dist.config import load_config, to_yaml
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import sole_owner
from pairvpr_dist.training import history
from pairvpr_dist.training.history import append_event
from pairvpr_dist.training.inspection import (
    RunState,
    duration,
    inspect_stage,
    read_settings,
    seconds_left,
    stages_of,
    usual_rate,
)
from pairvpr_dist.training.liveness import UNTOLD
from pairvpr_dist.training.run_report import run_report
from pairvpr_dist.training.run_text import as_text

ROOT = Path(__file__).parents[2]
HERE = {"processes": 1, "hosts": [socket.gethostname()], "job": None, "total_steps": 100, "steps_per_epoch": 10}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stage's folder before its first start."""
    folder = tmp_path / "run" / "stage1"
    folder.mkdir(parents=True)
    config = load_config("stage1", "tiny", overrides("stage1", tmp_path, tmp_path / "run", ["train.epochs=10"]))
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def write_line(folder: Path, step: int, **more: float) -> None:
    starts = [event for event in history.read_history(folder) if event["event"] == history.STARTED]
    line = {"step": step, "loss": 1 / step, "epoch": (step - 1) // 10, "places_per_second": 30.0, "skipped_steps": 0}
    line["restarts"] = max(0, len(starts) - 1)
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(line | more) + "\n")


def write_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint as far as size and name go."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "state.json").write_text("{}")
    (path / "manifest.json").write_text(json.dumps({"state.json": {"size": 2, "sha256": ""}}))
    (folder / "checkpoints" / "latest").write_text(f"{path.name}\n")
    append_event(folder, history.CHECKPOINT, step, seconds=0.1, stall=0.01, bytes=2)
    return path


def begin(folder: Path, step: int = 0, hosts: tuple[str, ...] = (socket.gethostname(),)) -> None:
    append_event(folder, history.STARTED, step, **(HERE | {"hosts": list(hosts)}))


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """The stage's lock is held, and has been for long."""
    with sole_owner(folder / "lock", ""):
        os.utime(folder / "lock", (time.time() - 9,) * 2)
        yield


def test_a_stage_that_has_not_begun(folder: Path) -> None:
    state = inspect_stage(folder)
    assert (state.state, state.step, state.steps, state.epochs) == ("not begun", 0, None, 10)
    assert state.loss is state.seconds_left is state.checkpoint_step is state.silent is None


def test_what_a_stage_at_work_tells(folder: Path) -> None:
    with at_work(folder):
        assert inspect_stage(folder).state == "starting"
        begin(folder)
        assert inspect_stage(folder).state == "starting"
        write_line(folder, 10)
        write_checkpoint(folder, 10)
        write_line(folder, 20, mfu=0.5, skipped_steps=2)
        (folder / "bad_places.csv").write_text('place,file,reason\na/b,x.tar,"two\nlines"\n')
        state = inspect_stage(folder)
    assert (state.state, state.step, state.steps, state.epoch, state.epochs) == ("running", 20, 100, 2, 10)
    assert (state.loss, state.places_per_second, state.mfu) == (0.05, 30.0, 0.5)
    assert (state.skipped_steps, state.bad_places, state.restarts) == (2, 1, 0)
    assert (state.checkpoint_step, state.seconds_left) == (10, 80 * 6 / 30)
    assert 0 <= (state.checkpoint_age or -1) < 60


def test_a_stage_that_was_started_again_is_starting_until_it_has_made_a_step(folder: Path) -> None:
    begin(folder)
    write_line(folder, 10)
    write_checkpoint(folder, 10)
    write_line(folder, 15)
    with at_work(folder):
        begin(folder, 10)
        assert inspect_stage(folder).state == "starting"  # step 15 is of the start before
        write_line(folder, 20)
        state = inspect_stage(folder)
        assert (state.state, state.restarts) == ("running", 1)
        append_event(folder, history.FAILED, 20, reason="process 1 ended with signal 9")
        assert inspect_stage(folder).state == "starting"  # the launcher starts it again
        begin(folder, 10)
        append_event(folder, history.SIGNALLED, 22, signal="SIGTERM")
        state = inspect_stage(folder)
        assert (state.state, state.reason) == ("stopping", "SIGTERM")


def test_a_process_that_has_taken_the_lock_is_starting_until_it_says_a_word(folder: Path) -> None:
    begin(folder)
    write_line(folder, 10)
    for name in ("metrics.jsonl", "history.jsonl"):
        os.utime(folder / name, (time.time() - 9,) * 2)
    with sole_owner(folder / "lock", ""):
        assert inspect_stage(folder).state == "starting"
        write_line(folder, 20)  # of the process before, to which another was refused the lock
        os.utime(folder / "metrics.jsonl", (time.time() + 9,) * 2)
        assert inspect_stage(folder).state == "running"


def test_who_knows_of_the_process_decides(folder: Path) -> None:
    begin(folder)
    write_line(folder, 10)
    assert inspect_stage(folder, alive=True).state == "running"
    assert inspect_stage(folder, alive=True, since=time.time() + 5).state == "starting"
    assert inspect_stage(folder, alive=False).state == "failed"


@pytest.mark.parametrize(
    ("events", "state", "reason"),
    [
        ([(history.SIGNALLED, {"signal": "SIGUSR2"}), (history.STOPPED, {})], "stopped", "SIGUSR2"),
        ([(history.STOPPED, {})], "stopped", None),
        ([(history.FAILED, {"reason": "tasks ended with status 1"})], "failed", "tasks ended with status 1"),
        ([(history.HUNG, {"ranks": [3], "phase": "data"}), (history.FAILED, {"reason": "status 75"})], "failed",
         "rank 3 hung at step 12 in phase 'data'"),
        ([], "failed", UNTOLD),
    ],
)  # fmt: skip
def test_a_stage_that_is_not_at_work(
    folder: Path, events: list[tuple[str, dict[str, object]]], state: str, reason: str | None
) -> None:
    (folder / "lock").touch()
    begin(folder)
    write_line(folder, 12)
    for event, facts in events:
        append_event(folder, event, 12, **facts)
    found = inspect_stage(folder)
    assert (found.state, found.reason) == (state, reason)
    told_of = any(event in (history.FAILED, history.HUNG) for event, _ in events)
    assert found.last_failure == (reason if told_of else None)


def test_a_stage_on_another_machine_counts_as_alive_while_its_word_is_fresh(folder: Path) -> None:
    (folder / "lock").touch()
    begin(folder, hosts=("elsewhere",))
    write_line(folder, 12)
    assert inspect_stage(folder).state == "running"
    old = json.loads((folder / "history.jsonl").read_text()) | {"time": time.time() - 3600}
    (folder / "history.jsonl").write_text(json.dumps(old) + "\n")
    os.utime(folder / "metrics.jsonl", (time.time() - 3000,) * 2)
    state = inspect_stage(folder)
    assert state.state == "failed"
    assert 2990 < (state.silent or 0) < 3100


def test_a_run_of_an_older_version(folder: Path) -> None:
    write_line(folder, 12)
    values = json.loads(json.dumps(read_settings(folder)))
    del values["train"]["keep_every"], values["train"]["max_steps"], values["launch"]
    (folder / "config.yaml").write_text(json.dumps(values))
    assert (inspect_stage(folder).state, inspect_stage(folder).restarts) == ("running", 0)
    os.utime(folder / "metrics.jsonl", (time.time() - 3000,) * 2)
    assert (inspect_stage(folder).state, inspect_stage(folder).steps) == ("stopped", None)
    (folder / "export").mkdir()
    (folder / "export" / "config.json").touch()
    assert (inspect_stage(folder).state, inspect_stage(folder).steps) == ("ended", 12)


def test_epochs_where_the_steps_are_given(folder: Path) -> None:
    values = read_settings(folder)
    values["train"]["max_steps"] = 35
    (folder / "config.yaml").write_text(json.dumps(values))
    assert (inspect_stage(folder).steps, inspect_stage(folder).epochs) == (35, None)
    append_event(folder, history.STARTED, 0, **(HERE | {"total_steps": 35}))
    assert (inspect_stage(folder).steps, inspect_stage(folder).epochs) == (35, 4)


@given(cut=st.integers(0, 600), glue=st.booleans())
def test_files_torn_anywhere_tell_what_they_can(
    tmp_path_factory: pytest.TempPathFactory, whole_run: Path, cut: int, glue: bool
) -> None:
    folder = tmp_path_factory.mktemp("torn") / "stage1"
    shutil.copytree(whole_run, folder)
    for name in ("metrics.jsonl", "history.jsonl"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - cut] if cut < len(content) else b"")
    if glue:  # what was torn by a full disk and written on when there was room again
        write_line(folder, 40)
        append_event(folder, history.STOPPED, 40)
    state = inspect_stage(folder, alive=True)
    assert state.step <= 40
    assert state.state in ("starting", "running")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "stage1"
    folder.mkdir()
    (folder / "config.yaml").write_text("stage: stage1\ntrain: {epochs: 4}\ndata: {places_per_batch: 6}\n")
    begin(folder)
    for step in (10, 20, 30):
        write_line(folder, step)
    return folder


def test_a_long_log_costs_what_a_short_one_does(folder: Path) -> None:
    line = json.dumps({"step": 1, "loss": 2.0, "epoch": 0, "places_per_second": 1.0, "filler": "x" * 400}) + "\n"
    with (folder / "metrics.jsonl").open("w") as log:
        log.writelines([line] * 500_000)
    write_line(folder, 77)
    before = psutil.Process().io_counters().read_chars
    assert inspect_stage(folder).step == 77
    assert psutil.Process().io_counters().read_chars - before < 1 << 20


@pytest.mark.parametrize("text", ["", "[]", "stage: 1", "{stage: stage1, data: {}}", "a: [", "stage: \x00"])
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: not") as told:
        inspect_stage(tmp_path)
    assert "\n" not in str(told.value)


def test_which_folders_are_looked_at(folder: Path, tmp_path: Path) -> None:
    assert stages_of(folder.parent) == stages_of(folder) == [folder]
    assert stages_of(tmp_path) == []
    with pytest.raises(UserError, match="no such folder"):
        stages_of(tmp_path / "none")


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 4096), st.floats(1e-3, 1e6))
def test_what_is_left_is_never_negative_and_shrinks(step: int, steps: int, places: int, rate: float) -> None:
    left = seconds_left(step, steps, places, rate)
    assert left is not None
    assert 0 <= (seconds_left(step + 1, steps, places, rate) or 0) <= left
    assert (left == 0) == (step >= steps)
    assert seconds_left(step, None, places, rate) is seconds_left(step, steps, places, None) is None
    assert seconds_left(step, steps, places, 0.0) is None


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=60))
def test_the_usual_rate_is_one_of_the_last_ones(rates: list[float]) -> None:
    usual = usual_rate([{"step": i, "places_per_second": rate} for i, rate in enumerate(rates)])
    assert usual is not None
    assert min(rates[-20:]) <= usual <= max(rates[-20:])


@given(st.floats(0, 1e8))
def test_a_duration_is_about_that_long(seconds: float) -> None:
    value, unit = duration(seconds).split()
    size = {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]
    assert float(value) * size == pytest.approx(seconds, abs=max(size * 0.5, 1.0), rel=0.01)


def wait_until(reached: Callable[[RunState], bool], folder: Path) -> RunState:
    deadline = time.monotonic() + 200
    while not ((folder / "config.yaml").exists() and reached(state := inspect_stage(folder))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return state


@pytest.mark.slow
def test_the_life_of_a_real_run(city_shards: Path, tmp_path: Path) -> None:
    """Started, killed, stopped and ended: at every moment the folder tells it."""
    lengths = ["train.max_steps=4000", "train.checkpoint_every=10"]
    arguments = overrides("stage1", city_shards, tmp_path / "run", lengths)
    command = [sys.executable, "launchers/local.py", "stage1", "tiny", *arguments]
    folder = tmp_path / "run" / "stage1"

    first = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    assert wait_until(lambda state: state.state != "not begun", folder).state == "starting"
    state = wait_until(lambda state: (state.checkpoint_step or 0) >= 10, folder)
    assert (state.state, state.steps, state.epochs) == ("running", 4000, 2000)
    workers = psutil.Process(first.pid).children(recursive=True)
    os.killpg(first.pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
    psutil.wait_procs(workers, timeout=60)
    first.wait()
    assert inspect_stage(folder).state == "failed"
    assert as_text(run_report(folder))

    second = subprocess.Popen(command, cwd=ROOT)
    assert wait_until(lambda state: state.state != "failed", folder).state == "starting"
    state = wait_until(lambda state: state.state == "running", folder)
    assert state.restarts == 1
    second.terminate()
    assert second.wait(timeout=60) == 128 + signal.SIGTERM
    assert inspect_stage(folder).state == "stopped"
    assert inspect_stage(folder).seconds_left
    starts = run_report(folder)["stages"][0]["starts"]
    assert [start["end"] for start in starts] == [UNTOLD, "stopped"]
    assert 10 <= starts[0]["to_step"] <= starts[1]["from_step"] + 10 <= starts[1]["to_step"] + 10
