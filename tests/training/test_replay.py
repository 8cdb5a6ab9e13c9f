"""A step that went wrong, read back and run alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from small_runs import small_config

from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.errors import UserError
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.objectives.base import Objective
from pairvpr_dist.training.diagnosis import FORWARD, Finding, Observer, conclude
from pairvpr_dist.training.replay import FILE, Replay, inspect_replay, read_batch, read_replay, save_replay
from pairvpr_dist.training.starting import initial_model

STEP = 5
BAD = "model.decoder.blocks.0.mlp.fc2"


def spoil_weight(objective: Objective) -> None:
    objective.get_submodule(BAD).weight.data[3, 5] = torch.inf


def overflow_backwards(objective: Objective) -> None:
    """An MLP that gives 0 and does not touch the loss, with a gradient beyond fp32."""
    block = objective.get_submodule("model.decoder.blocks.0")
    block.get_submodule("norm3").weight.data.fill_(1e8)
    block.get_submodule("mlp.fc1").weight.data.zero_()
    block.get_submodule("mlp.fc1").bias.data.zero_()
    block.get_submodule("mlp.fc2").weight.data[0] = 3e38


def kept(stage: str, shards: Path, folder: Path, precision: str, spoil: Callable[[Objective], None]) -> Path:
    """A replay of two ranks, with what is found in it when it is written."""
    config = small_config(stage, shards, folder, [f"train.precision={precision}"])
    loaders = [EpochLoader(config.data, config.model.image_size, config.seed, rank, 2) for rank in range(2)]
    batches = [next(loader.batches(0, 1)) for loader in loaders]
    objective = build_objective(config, initial_model(config), loaders[0].datasets)
    spoil(objective)
    weights = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    if precision == "bf16":
        objective.bfloat16()
    names = [loader.place_names(batch) for loader, batch in zip(loaders, batches, strict=True)]
    sightings = []
    for batch, own in zip(batches, names, strict=True):
        with Observer(objective) as observer:
            loss, _ = objective(batch, STEP)
            loss.backward()
        sightings.append(observer.sighting(loss, batch, own))
    replay = Replay(STEP, precision == "bf16", 2, loaders[0].datasets, names, conclude(sightings), "abc")
    path = folder / "replays" / "step-00000006"
    tensors = [{f.name: getattr(batch, f.name) for f in fields(Batch)} for batch in batches]
    save_replay(path, replay, weights, tensors, config)
    return path


@pytest.fixture(scope="module")
def replay(city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept("stage1", city_shards, tmp_path_factory.mktemp("run"), "fp32", spoil_weight)


def test_a_replay_holds_the_step(replay: Path, city_shards: Path) -> None:
    described, config = read_replay(replay)
    assert config == small_config("stage1", city_shards, replay.parents[1], ["train.precision=fp32"])
    assert (described.step, described.bf16, described.finding.module) == (STEP, False, BAD)
    assert [len(names) for names in described.places] == [3, 3]
    for rank in range(2):
        loader = EpochLoader(config.data, config.model.image_size, config.seed, rank, 2)
        batch = next(loader.batches(0, 1))
        read = read_batch(replay, rank)
        assert all(torch.equal(getattr(batch, f.name), getattr(read, f.name)) for f in fields(Batch))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_fault_comes_again(city_shards: Path, tmp_path: Path, stage: str, precision: str) -> None:
    told = inspect_replay(kept(stage, city_shards, tmp_path, precision, spoil_weight))
    shutil.rmtree(tmp_path)
    assert told.startswith(f"step 6 of {stage} tiny, {precision}, 2 processes, ZeRO 2, commit abc")
    assert told.count(f"loss not finite, first in the output of {BAD}, whose weights are not finite") == 2
    assert "            reproduced\n" in told
    entered, *_ = [line.split() for line in told.splitlines() if " 0     input" in line or " all   input" in line]
    assert entered[-2:] == ["100", "%"]
    left = next(line.split() for line in told.splitlines() if " output  " in line)
    assert 0 < float(left[-2]) < 100
    assert torch.isfinite(torch.tensor([float(left[2]), float(left[3])])).all()


def test_losses_are_told_by_place_in_stage_1(city_shards: Path, tmp_path: Path) -> None:
    """A fault that does not come again is said; the losses are those of the run."""
    path = kept("stage1", city_shards, tmp_path, "fp32", lambda objective: None)
    content = json.loads((path / FILE).read_text())
    content["replay"]["finding"] |= {"phase": FORWARD, "module": BAD, "ranks": [1], "places": ["a/b"]}
    (path / FILE).write_text(json.dumps(content))
    told = inspect_replay(path)
    assert "NOT REPRODUCED" in told
    for rank, names in enumerate(content["replay"]["places"]):
        (line,) = [line for line in told.splitlines() if line.startswith(f"rank {rank}: loss ")]
        now, recorded = (float(word.strip(",")) for word in line.split() if word[0].isdigit() and "." in word)
        assert now == pytest.approx(recorded, rel=1e-4)
        by_place = [float(line.split()[0]) for line in told.splitlines() if line.endswith(tuple(names))]
        assert len(by_place) == len(names)
        assert by_place == sorted(by_place, reverse=True)
        assert sum(by_place) / len(names) == pytest.approx(now, rel=1e-4)


def test_a_gradient_alone_comes_again(city_shards: Path, tmp_path: Path) -> None:
    told = inspect_replay(kept("stage1", city_shards, tmp_path, "fp32", overflow_backwards))
    where = "first in the gradient of model.decoder.blocks.0.mlp.fc1.weight"
    assert told.count(f"gradient, but not the loss, not finite, {where}") == 2
    assert "            reproduced\n" in told


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("no description", lambda path: (path / FILE).unlink(), "no such file; it should be a replay's description"),
    ("another thing", lambda path: (path / FILE).write_text("[]"), "not a replay of this version"),
    ("a key missing", lambda path: change(path, lambda c: c["replay"].pop("step")), "no value for step"),
    ("a wrong type", lambda path: change(path, lambda c: c["replay"].update(step="x")), "step"),
    ("an unknown key", lambda path: change(path, lambda c: c["replay"].update(run="rm")), "unknown key 'run'"),
    ("no configuration", lambda path: change(path, lambda c: c.pop("config")), "no value for"),
    ("weights cut", lambda path: cut(path / "model.safetensors"), "not readable as weights"),
    ("a batch cut", lambda path: cut(path / "rank-001.safetensors"), "not readable as weights"),
    ("a batch missing", lambda path: (path / "rank-001.safetensors").unlink(), "no such file"),
    ("weights for a batch", lambda path: shutil.copy(path / "model.safetensors", path / "rank-000.safetensors"),
     "not a rank's batch"),
]  # fmt: skip


def change(path: Path, edit: Callable[[dict[str, dict[str, object]]], object]) -> None:
    content = json.loads((path / FILE).read_text())
    edit(content)
    (path / FILE).write_text(json.dumps(content))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(("damage", "told"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
def test_a_replay_that_is_damaged_is_told_in_one_line(
    replay: Path, tmp_path: Path, damage: Callable[[Path], object], told: str
) -> None:
    path = Path(shutil.copytree(replay, tmp_path / "replay"))
    damage(path)
    with pytest.raises(UserError, match=told) as error:
        inspect_replay(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_finding_says_what_is_known() -> None:
    nan = float("nan")
    assert str(Finding([1.0, nan], FORWARD, "m", False, [1], [])) == (
        "loss not finite, first in the output of m, on rank 1"
    )
