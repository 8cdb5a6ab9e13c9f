"""Checkpoints: whole or not there, put together from any number of ranks, kept as asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_json
from pairvpr_dist.training.checkpoint import BEST, STARTS, Checkpoint, Progress, find_fault, find_latest, rank_file
from pairvpr_dist.training.engine import Part, Stretch, even_share
from pairvpr_dist.training.history import CHECKPOINT, read_history
from pairvpr_dist.training.saving import Saver, dispensable, forget_after, take_back

CONFIG = load_config("stage1", "tiny", ["data.shards=none"])
FILES = ["rank-0000.safetensors", "state.json"]
SHAPES = {"a.weight": torch.Size([3, 4]), "a.bias": torch.Size([3])}


def weights_at(step: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=draws) for name, shape in SHAPES.items()}


def part_at(step: int) -> Part:
    weights = weights_at(step).items()
    part = {f"weight/{name}": Stretch(0, value.flatten()) for name, value in weights}
    return part | {f"exp_avg/{name}": Stretch(0, value.flatten() * 2) for name, value in weights}


def save_at(run: Path, step: int, keep: int = 100, best: bool = False, **changes: Any) -> Path:
    """Save what belongs to a step below `run`, as a lone rank."""
    saver = Saver(run, replace(CONFIG, train=replace(CONFIG.train, keep_checkpoints=keep, **changes)))
    saver.save(part_at(step), step, Progress(step, 1, 0, data_offset=3, rewinds=1, best=0.5), best)
    saver.close()
    return run / "checkpoints" / f"step-{step:08d}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def loaded_step(run: Path) -> int:
    latest = find_latest(run / "checkpoints")
    assert latest is not None
    saved = Checkpoint(latest)
    weights = saved.weights(SHAPES)
    assert all(torch.equal(weights[name], value) for name, value in weights_at(saved.progress.step).items())
    return saved.progress.step


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save_at(tmp_path, 7)
    assert find_latest(tmp_path / "checkpoints") == path
    saved = Checkpoint(path)
    assert saved.progress == Progress(7, 1, 0, 3, 1, 0.5)
    assert saved.progress.data_step == 10
    assert saved.updates == 7
    assert loaded_step(tmp_path) == 7
    assert torch.equal(saved.read("exp_avg/a.weight", 2, 5), 2 * weights_at(7)["a.weight"].flatten()[2:7])
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000007\n"
    assert json.loads((path / "state.json").read_text())["config"]["optim"]["lr"] == CONFIG.optim.lr
    assert names(path) == sorted([*FILES, "manifest.json"])
    (event,) = read_history(tmp_path)
    assert (event["event"], event["step"]) == (CHECKPOINT, 7)
    assert event["bytes"] == (path / FILES[0]).stat().st_size


def test_what_changes_after_the_call_is_not_saved(tmp_path: Path) -> None:
    """Training goes on while the file is written."""
    saver = Saver(tmp_path, CONFIG)
    part = part_at(1)
    saver.save(part, 1, Progress(1))
    for stretch in part.values():
        stretch.values.zero_()
    saver.close()
    assert loaded_step(tmp_path) == 1


@given(numbers=st.integers(1, 60), world=st.integers(1, 7), data=st.data())
def test_a_tensor_is_put_together_from_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, numbers: int, world: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("checkpoint")
    whole = torch.arange(float(numbers))
    for rank in range(world):
        own = even_share(numbers, rank, world)
        part = {"weight/a": whole[own.start : own.stop]} if own else {}
        starts = {key: own.start for key in part}
        save_file(part, path / rank_file(rank), metadata={STARTS: json.dumps(starts)})
    write_json(path / "state.json", {"progress": {"step": 1}, "updates": 1, "ranks": world, "config": {}})
    saved = Checkpoint(path)
    start = data.draw(st.integers(0, numbers - 1))
    count = data.draw(st.integers(0, numbers - start))
    np.testing.assert_array_equal(saved.read("weight/a", start, count), whole[start : start + count])
    with pytest.raises(UserError, match=rf"holds {numbers} of {numbers + 1} numbers of weight/a; remove"):
        saved.read("weight/a", 0, numbers + 1)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "nowhere") is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 1000, 100_000_000):
        save_at(tmp_path, step, keep=2)
    assert names(tmp_path / "checkpoints") == ["latest", "step-00001000", "step-100000000"]


def test_milestones_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 10):
        save_at(tmp_path, step, keep=2, keep_every=3, best=step in (1, 5))
    kept = ["step-00000003", "step-00000005", "step-00000006", "step-00000008", "step-00000009"]
    assert names(tmp_path / "checkpoints") == [BEST, "latest", *kept]
    assert (tmp_path / "checkpoints" / BEST).read_text() == "step-00000005\n"


def test_a_checkpoint_that_is_saved_again_is_there_at_every_moment(tmp_path: Path) -> None:
    """What a kill between the two renames leaves is taken back; what one after them leaves is removed."""
    path = save_at(tmp_path, 4, keep=1)
    retired = path.with_name(f".{path.name}.retired")
    os.replace(path, retired)
    take_back(path.parent)
    assert loaded_step(tmp_path) == 4
    shutil.copytree(path, retired)
    save_at(tmp_path, 4, keep=1, best=True)
    assert names(path.parent) == [BEST, "latest", path.name]
    assert loaded_step(tmp_path) == 4


def test_the_best_is_one_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        save_at(tmp_path, step, best=step in (1, 3))
    assert (folder / BEST).read_text() == "step-00000003\n"
    forget_after(folder / "step-00000002", folder)
    assert (folder / BEST).read_text() == "step-00000001\n"
    shutil.rmtree(folder / "step-00000001")
    save_at(tmp_path, 3)
    assert not (folder / BEST).exists()


@given(steps=st.sets(st.integers(1, 200), min_size=1), keep=st.integers(1, 5), every=st.integers(0, 7), data=st.data())
def test_what_goes_is_neither_new_nor_a_milestone_nor_the_best(
    steps: set[int], keep: int, every: int, data: st.DataObject
) -> None:
    newest_first = [Path(f"step-{step:08d}") for step in sorted(steps, reverse=True)]
    best = data.draw(st.sampled_from([None, *(path.name for path in newest_first)]))
    config = replace(CONFIG, train=replace(CONFIG.train, keep_checkpoints=keep, keep_every=every))
    gone = dispensable(newest_first, config, best)
    for path in newest_first:
        milestone = every > 0 and int(path.name[5:]) % every == 0
        assert (path in gone) == (path not in newest_first[:keep] and not milestone and path.name != best)


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


def test_a_rank_without_its_file_is_damage(tmp_path: Path) -> None:
    path = save_at(tmp_path, 5)
    state = json.loads((path / "state.json").read_text())
    manifest = json.loads((path / "manifest.json").read_text())
    for ranks in (2, 0):
        write_json(path / "state.json", state | {"ranks": ranks})
        write_json(path / "manifest.json", manifest)
        assert find_fault(path) == "the manifest names other files"


def test_when_every_one_is_damaged_the_run_is_not_started_afresh(tmp_path: Path) -> None:
    for step in (5, 10):
        cut(save_at(tmp_path, step) / FILES[0])
    with pytest.raises(UserError, match=r"every checkpoint is damaged; remove the folder"):
        find_latest(tmp_path / "checkpoints")
    assert names(tmp_path / "checkpoints") == ["latest", "step-00000005", "step-00000010"]


def test_one_before_a_step_can_be_asked_for(tmp_path: Path) -> None:
    for step in (5, 10):
        save_at(tmp_path, step)
    found = [find_latest(tmp_path / "checkpoints", before) for before in (11, 10, 5)]
    assert [path and path.name for path in found] == ["step-00000010", "step-00000005", None]


@pytest.mark.parametrize("step", [8, 10])
def test_a_run_that_passed_over_a_damaged_one_replaces_it(tmp_path: Path, step: int) -> None:
    """Were the damaged one of step 10 counted as the newest, keeping one would remove the good one of step 8."""
    save_at(tmp_path, 5)
    cut(save_at(tmp_path, 10) / FILES[0])
    save_at(tmp_path, step, keep=1)
    assert names(tmp_path / "checkpoints") == ["latest", f"step-{step:08d}"]
    assert loaded_step(tmp_path) == step


def test_what_a_killed_process_half_wrote_is_not_loaded_and_removed_later(tmp_path: Path) -> None:
    save_at(tmp_path, 5)
    half = tmp_path / "checkpoints" / ".step-00000010.part"
    half.mkdir()
    (half / FILES[0]).write_bytes(b"half")
    assert loaded_step(tmp_path) == 5
    save_at(tmp_path, 10)
    assert names(tmp_path / "checkpoints") == ["latest", "step-00000005", "step-00000010"]
