"""Checkpoints: the newest whole one is always found, and what is damaged is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.training.checkpoint import FILES, Progress, find_fault, find_latest, load, save
from pairvpr_dist.training.engine import FullState

CONFIG = load_config("stage1", "tiny", ["data.shards=none"])


def state_at(step: int) -> FullState:
    draws = torch.Generator().manual_seed(step)
    model = {"a.weight": torch.randn(3, 4, generator=draws), "a.bias": torch.randn(3, generator=draws)}
    return FullState(model, {f"exp_avg/{name}": value * 2 for name, value in model.items()}, updates=step)


def save_at(folder: Path, step: int, keep: int = 100) -> Path:
    return save(folder, state_at(step), Progress(step, skipped_steps=1, seconds=2.5), CONFIG, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def loaded_step(folder: Path) -> int:
    latest = find_latest(folder)
    assert latest is not None
    state, progress = load(latest)
    assert torch.equal(state.model["a.weight"], state_at(progress.step).model["a.weight"])
    return progress.step


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save_at(tmp_path, 7)
    assert find_latest(tmp_path) == path
    state, progress = load(path)
    assert progress == Progress(7, 1, 2.5)
    assert state.updates == 7
    for ours, theirs in ((state.model, state_at(7).model), (state.moments, state_at(7).moments)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "latest").read_text() == "step-00000007\n"
    assert json.loads((path / "state.json").read_text())["config"]["optim"]["lr"] == CONFIG.optim.lr
    assert names(path) == sorted([*FILES, "manifest.json"])


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "nowhere") is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 1000, 100_000_000):
        save_at(tmp_path, step, keep=2)
    assert names(tmp_path) == ["latest", "step-00001000", "step-100000000"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "one bit": flip,
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_passed_over_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    save_at(tmp_path, 5)
    newest = save_at(tmp_path, 10)
    DAMAGE[damage](newest / name)
    assert find_fault(newest) is not None
    assert loaded_step(tmp_path) == 5
    assert f"checkpoint {newest} is damaged" in caplog.text


def test_when_every_one_is_damaged_the_run_is_not_started_afresh(tmp_path: Path) -> None:
    for step in (5, 10):
        cut(save_at(tmp_path, step) / "model.safetensors")
    with pytest.raises(UserError, match=r"every checkpoint is damaged; remove the folder"):
        find_latest(tmp_path)
    assert names(tmp_path) == ["latest", "step-00000005", "step-00000010"]


@pytest.mark.parametrize("step", [8, 10])
def test_a_run_that_passed_over_a_damaged_one_replaces_it(tmp_path: Path, step: int) -> None:
    """Were the damaged one of step 10 counted as the newest, keeping one would remove the good one of step 8."""
    save_at(tmp_path, 5)
    cut(save_at(tmp_path, 10) / "model.safetensors")
    save_at(tmp_path, step, keep=1)
    assert names(tmp_path) == ["latest", f"step-{step:08d}"]
    assert loaded_step(tmp_path) == step


def test_what_a_killed_process_half_wrote_is_not_loaded_and_removed_later(tmp_path: Path) -> None:
    save_at(tmp_path, 5)
    half = tmp_path / ".step-00000010.4711.part"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert loaded_step(tmp_path) == 5
    save_at(tmp_path, 10)
    assert names(tmp_path) == ["latest", "step-00000005", "step-00000010"]


def test_an_interrupted_save_leaves_the_one_before(tmp_path: Path) -> None:
    save_at(tmp_path, 5)
    broken = state_at(10)
    broken.moments["exp_avg/a.bias"] = torch.zeros(2, 2).to_sparse()  # safetensors refuses it, after the model's file
    with pytest.raises((ValueError, RuntimeError)):
        save(tmp_path, broken, Progress(10, 0, 0.0), CONFIG, keep=1)
    assert names(tmp_path) == ["latest", "step-00000005"]
    assert loaded_step(tmp_path) == 5
