"""Copies of the code: shared by equal sources, whole, and what a job imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launchers.snapshot import SOURCES, source_files, take_snapshot


def checkout(folder: Path) -> Path:
    for name, text in {"pairvpr_dist/a.py": "A = 1\n", "launchers/b.py": "", "configs/c.yaml": "x: 1\n",
                       "pairvpr_dist/__pycache__/a.cpython-311.pyc": "", "runs/x/pairvpr_dist/a.py": "",
                       "data.py": ""}.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_only_sources_are_copied(tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "run", checkout(tmp_path / "here"))
    assert copy.parent == tmp_path / "run" / "code"
    files = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert files == {"pairvpr_dist/a.py", "launchers/b.py", "configs/c.yaml", "COMMIT"}


def test_equal_sources_share_a_copy_and_a_change_makes_another(tmp_path: Path) -> None:
    here = checkout(tmp_path / "here")
    first = take_snapshot(tmp_path / "run", here)
    assert take_snapshot(tmp_path / "run", here) == first
    (here / "pairvpr_dist" / "a.py").write_text("A = 2\n")
    second = take_snapshot(tmp_path / "run", here)
    assert second != first
    assert (first / "pairvpr_dist" / "a.py").read_text() == "A = 1\n"
    assert sorted((tmp_path / "run" / "code").iterdir()) == sorted([first, second])


def test_a_renamed_file_makes_another(tmp_path: Path) -> None:
    here = checkout(tmp_path / "here")
    first = take_snapshot(tmp_path / "run", here)
    (here / "launchers" / "b.py").rename(here / "launchers" / "d.py")
    assert take_snapshot(tmp_path / "run", here) != first


def test_the_copy_runs_and_not_what_is_installed_or_lies_in_the_folder(tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "run")
    assert {str(path) for path in source_files(SOURCES)} <= {str(p.relative_to(copy)) for p in copy.rglob("*")}
    program = (
        "import launchers.task, pairvpr_dist.config, shards.build; from pairvpr_dist.training.facts import commit;"
        "print(launchers.task.__file__, pairvpr_dist.config.CONFIGS, shards.build.__file__, commit(), sep='\\n')"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=SOURCES, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"},
    ).stdout.splitlines()  # fmt: skip
    assert told[:3] == [str(copy / "launchers/task.py"), str(copy / "configs"), str(copy / "shards/build.py")]
    assert told[3] == (copy / "COMMIT").read_text().strip()
