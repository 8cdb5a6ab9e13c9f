"""Weights & Biases is an extra: told in one line when it is not there, a copy of TensorBoard when it is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import small_config

from pairvpr_dist.errors import UserError
from pairvpr_dist.training.history import STARTED, add_event
from pairvpr_dist.training.weights_and_biases import check_wandb, run_id

ROOT = Path(__file__).parents[2]
INSTALLED = importlib.util.find_spec("wandb") is not None


@pytest.mark.skipif(INSTALLED, reason="the package wandb is installed")
def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.wandb=places: .*pairvpr_dist\[wandb\]"):
        check_wandb(small_config("stage1", Path("unused"), tmp_path, ["train.wandb=places"]).train)


def test_a_run_that_does_not_ask_for_it_needs_no_package(tmp_path: Path) -> None:
    check_wandb(small_config("stage1", Path("unused"), tmp_path).train)


def test_all_starts_of_a_run_are_one_run_there(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        add_event(folder, STARTED, 0)
    identity = run_id(first)
    add_event(first, STARTED, 20)
    assert run_id(first) == identity != run_id(second)


@pytest.mark.skipif(not INSTALLED, reason="the package wandb is not installed: pip install 'pairvpr_dist[wandb]'")
def test_what_is_logged_is_kept_there(tmp_path: Path) -> None:
    """Two starts, each a process, as a run has them: the files are whole when a process has ended."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from small_runs import small_config
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.history import STARTED, add_event
from pairvpr_dist.training.monitor import Monitor
folder, first = Path(sys.argv[1]), int(sys.argv[2])
add_event(folder, STARTED, first)
monitor = Monitor(folder, small_config("stage1", Path("unused"), folder, ["train.wandb=places"]), Progress(first), 10)
monitor.record({{"loss": torch.tensor(1.0)}}, 0.0)
monitor.write_window(first + 1, {{}})
monitor.show(first + 1, torch.zeros(3, 8, 8, dtype=torch.uint8))
monitor.close()
"""
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    for first in ("0", "2"):
        subprocess.run([sys.executable, "-c", program, tmp_path, first], env=environment, check=True, cwd=ROOT)
    kept = list((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id(tmp_path)}.wandb"))
    assert len(kept) == 2
    assert all(b"places_per_second" in path.read_bytes() for path in kept)
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/*.png"))) == 2
