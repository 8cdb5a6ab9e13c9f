"""Whole or not there, and nothing of anybody else's is touched."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.errors import UserError, exit_on_user_error, nearest
from pairvpr_dist.files import (
    append_json_line,
    cut_json_lines,
    new_folder,
    read_json,
    read_json_lines,
    replaced_when_done,
    sole_owner,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class InterruptionError(Exception):
    """What may happen in the middle of writing."""


def write_half(path: Path) -> None:
    path.write_text("half")
    raise InterruptionError


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with replaced_when_done(target) as aside:
        aside.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(InterruptionError), replaced_when_done(target) as aside:
        write_half(aside)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_and_json_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "Zürich\n")
    assert (tmp_path / "t").read_bytes() == "Zürich\n".encode()
    value = {"b": [1, 2.5, None], "a": "Zürich"}
    write_json(tmp_path / "j", value)
    assert read_json(tmp_path / "j", "a test") == value
    assert list(read_json(tmp_path / "j", "a test")) == ["b", "a"]
    assert names(tmp_path) == ["j", "t"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "j", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "j", {"x": object()})
    assert read_json(tmp_path / "j", "a test") == 1
    assert names(tmp_path) == ["j"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_a_damaged_json_is_told_by_file_and_purpose(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(UserError, match=r"j: not readable as a run's facts"):
        read_json(tmp_path / "j", "a run's facts")


def test_a_missing_json_is_told_by_file_and_purpose(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such file; it should be a run's facts"):
        read_json(tmp_path / "gone", "a run's facts")


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_folder(target) as aside:
        (aside / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(target.parent) == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as aside:
        (aside / "a").touch()
    assert names(tmp_path / "out") == ["a"]


def test_an_exception_removes_the_half_filled_folder(tmp_path: Path) -> None:
    with pytest.raises(InterruptionError), new_folder(tmp_path / "out") as aside:
        write_half(aside / "a")
    assert names(tmp_path) == []


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    file.write_text("mine")
    for target in (folder, file):
        with pytest.raises(UserError, match=f"{target.name}: already holds something"), new_folder(target):
            pytest.fail("the body must not run")
    assert (folder / "mine").read_text() == file.read_text() == "mine"
    assert names(tmp_path) == ["file", "folder"]


def test_what_a_dead_process_of_the_same_number_left_is_no_obstacle(tmp_path: Path) -> None:
    """In a container the same process numbers come again at every start."""
    left = tmp_path / f".out.{os.getpid()}.part"
    left.mkdir()
    (left / "half").touch()
    with new_folder(tmp_path / "out") as aside:
        (aside / "whole").touch()
    assert names(tmp_path / "out") == ["whole"]


@pytest.mark.parametrize("writer", ["new_folder", "replaced_when_done"])
def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path: Path, writer: str) -> None:
    program = f"""
import os, signal
from pathlib import Path
from pairvpr_dist.files import {writer}
with {writer}(Path({str(tmp_path / "out")!r})) as aside:
    path = aside / "a" if aside.is_dir() else aside
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def mistaken() -> None:
        raise UserError("file x: wrong; do y")

    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(mistaken)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: file x: wrong; do y\n")


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    def defect() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(defect)


def test_hints() -> None:
    assert nearest("stage11", ["stage1", "eval"]) == "did you mean 'stage1'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    refused = pytest.raises(UserError, match="another process works here; wait")
    with sole_owner(lock, "wait"), refused, sole_owner(lock, "wait"):
        pass
    with (
        sole_owner(lock, "wait", shared=True),
        sole_owner(lock, "wait", shared=True),
        refused,
        sole_owner(lock, "wait"),
    ):
        pass
    with sole_owner(tmp_path / "lock", "wait"):
        assert (tmp_path / "lock").exists()


def test_a_look_at_a_lock_does_not_keep_its_owner_out(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    with lock.open("rb") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        timer = threading.Timer(0.05, lambda: fcntl.flock(look, fcntl.LOCK_UN))
        timer.start()
        with sole_owner(lock, "wait"):
            assert not timer.is_alive()


def test_torn_and_glued_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2, "b{"a": 3}\n{"a": 4}\n\xff\n[5]\n{"a": 6}')
    assert read_json_lines(path) == [{"a": 1}, {"a": 4}]
    for last in range(60):
        assert read_json_lines(path, last) in ([], [{"a": 4}], [{"a": 1}, {"a": 4}])
    assert read_json_lines(path, 30) == [{"a": 4}]


def test_the_current_folder_is_no_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match="already holds something"), new_folder(Path(".")):
        pass


@given(steps=st.lists(st.integers(0, 20)).map(sorted), last=st.integers(-1, 21), torn=st.integers(0, 12))
def test_the_end_of_a_log_is_cut_off(steps: list[int], last: int, torn: int) -> None:
    """What stays has not been written again: it is the beginning of the file as it was."""
    lines = [json.dumps({"step": step}) + "\n" for step in steps]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(lines) + '{"step": 21}'[:torn])
        before = path.stat().st_ino
        cut_json_lines(path, lambda line: line["step"] <= last)
        assert path.stat().st_ino == before
        assert path.read_text() == "".join(lines[: sum(step <= last for step in steps)])
        assert [line["step"] for line in read_json_lines(path)] == [step for step in steps if step <= last]


@given(count=st.integers(0, 3), torn=st.integers(0, 30), last=st.integers(0, 4))
def test_a_line_after_a_torn_one_is_not_lost(count: int, torn: int, last: int) -> None:
    lines = [json.dumps({"step": step, "more": {}}) + "\n" for step in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(lines) + '{"step": 9, "more": {"a": {}}}'[:torn])
        append_json_line(path, {"step": 4})
        whole = [*range(count), *([9] if torn == 30 else []), 4]
        assert [line["step"] for line in read_json_lines(path)] == whole
        cut_json_lines(path, lambda line: line["step"] < last)
        assert [line["step"] for line in read_json_lines(path)] == list(range(min(count, last)))


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("no JSON at all\n" + '{"step": 1}\n{"step": 2}\n')
    cut_json_lines(path, lambda line: line["step"] <= 1)
    assert path.read_text() == 'no JSON at all\n{"step": 1}\n'


def test_what_is_no_log_yet_is_not_cut(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        cut_json_lines(tmp_path / name, lambda line: False)
    assert names(tmp_path) == ["empty"]
