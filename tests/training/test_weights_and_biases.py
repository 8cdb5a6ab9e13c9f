"""Weights & Biases is an extra: told in one line when it is not there, a copy of TensorBoard when it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from small_runs import small_config

from pairvpr_dist.errors import UserError
from pairvpr_dist.training.history import STARTED, add_event
from pairvpr_dist.training.monitor import Monitor
from pairvpr_dist.training.weights_and_biases import check_wandb, run_id

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
def test_what_is_logged_is_kept_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = small_config("stage1", Path("unused"), tmp_path, ["train.wandb=places"])
    for first in (0, 2):
        add_event(tmp_path, STARTED, first)
        monitor = Monitor(tmp_path, config, first, 10)
        monitor.record({"loss": torch.tensor(1.0)}, 0.0)
        monitor.write_window(first + 1, {})
        monitor.close()
    kept = list((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id(tmp_path)}.wandb"))
    assert kept
    assert all(b"places_per_second" in path.read_bytes() for path in kept)
