from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import cloudpickle
import pytest

from launchers import task
from launchers.task import (
    StageTask,
    Stopped,
    check_progress,
    choose_gpu,
    own,
    prepare_task,
    stop_at_signals,
    use_node_disk,
)
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError

JOB = {
    "SLURM_JOB_ID": "81234", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1",
    "SLURM_CPUS_PER_TASK": "2", "SLURMD_NODENAME": "n2", "RANK": "3", "LOCAL_RANK": "1",
}  # fmt: skip


@pytest.fixture
def in_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a task, whose node has a disk of its own; that is put back afterwards."""
    for name in ("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "OMP_NUM_THREADS", "PATH",
                 "WORLD_SIZE", "DS_ACCELERATOR", "TORCHELASTIC_SIGNALS_TO_HANDLE"):  # fmt: skip
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if name.endswith("_DIR"):
            monkeypatch.delenv(name)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_travels_to_the_job_and_back_into_the_queue(tmp_path: Path) -> None:
    config = load_config("eval", "tiny", [f"run={tmp_path}", "eval.model=m", "eval.data=d"])
    there = cloudpickle.loads(cloudpickle.dumps(StageTask(config)))
    assert there.config == config
    assert there.checkpoint().function.config == config


def test_ranks_and_threads_come_from_slurm(in_job: Path) -> None:
    prepare_task(threads=None)
    ranks = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")]
    assert ranks == ["3", "4", "1", "2"]


def test_caches_lie_on_the_nodes_disk_apart_for_each_job_and_node(
    in_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/site/triton")
    use_node_disk()
    first = {name: os.environ[name] for name in task.CACHES}
    assert first.pop("TRITON_CACHE_DIR") == "/site/triton"
    assert all(Path(folder).is_dir() and Path(folder).is_relative_to(in_job) for folder in first.values())
    assert Path(tempfile.gettempdir()) == Path(first["TMPDIR"])


def test_a_folder_that_another_user_has_made_there_is_refused(in_job: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = in_job / "pairvpr-81234-n2"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with pytest.raises(UserError, match="belongs to another user"):
        use_node_disk()


def test_a_lock_of_a_start_that_was_killed_while_it_compiled_is_taken_away(
    in_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_node_disk()
    lock = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setenv("TMPDIR", str(in_job))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    use_node_disk()
    assert not lock.exists()


def test_the_lock_of_an_earlier_start_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = f"import fcntl, time; f = open({str(tmp_path / 'lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{hold}; print(1, flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    monkeypatch.setattr(task, "LOCK_POLL", 0.05)
    with ExitStack() as owned, monkeypatch.context() as short:
        short.setattr(task, "LOCK_PATIENCE", 0.1)
        with pytest.raises(SystemExit, match="another process works here"):  # status 1: it is run again
            own(tmp_path, owned)
    with ExitStack() as owned:
        Timer(0.3, holder.kill).start()
        own(tmp_path, owned)
    holder.wait()
    holder.stdout.close()


def test_a_wrong_call_of_the_script_is_told() -> None:
    with pytest.raises(UserError, match="usage"):
        task.main(["after", "folder"])


@pytest.mark.parametrize(("visible", "given"), [(0, "1"), (1, "0"), (2, "1")])
def test_a_task_takes_its_own_gpu(visible: int, given: str, in_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    monkeypatch.delenv("SLURM_GPUS_PER_NODE", raising=False)
    choose_gpu(visible)
    assert os.environ["LOCAL_RANK"] == given


@pytest.mark.parametrize(("visible", "rank"), [(0, "0"), (7, "7")])
def test_a_node_that_lacks_gpus_ends_the_task_and_is_named(
    visible: int, rank: str, in_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit, match=socket.gethostname()):
        choose_gpu(visible)


def test_a_fault_of_a_nodes_disk_ends_the_task_and_is_named(in_job: Path) -> None:
    (in_job / "pairvpr-81234-n2").touch()
    with pytest.raises(SystemExit, match=f"{socket.gethostname()}: .*pairvpr-81234-n2"):
        use_node_disk()


def test_a_signal_ends_an_evaluation_once_and_cleans_up_undisturbed() -> None:
    before = {number: signal.getsignal(number) for number in task.STOPPING}
    cleaned = []

    def evaluation() -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    try:
        stop_at_signals()
        with pytest.raises(Stopped) as stopped:
            evaluation()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert cleaned
    assert stopped.value.args == (signal.SIGUSR2,)


def test_a_start_whose_time_was_over_before_anything_was_done_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho JobState=RUNNING StartTime=2026-11-21T13:03:00 PreemptTime=None\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    check_progress(signal.SIGUSR2, blocks=1)  # the next start goes on
    check_progress(signal.SIGTERM, blocks=0)  # a preemption
    with pytest.raises(UserError, match=r"eval\.cluster\.hours: too short"):
        check_progress(signal.SIGUSR2, blocks=0)
