"""The folder of a run: the same command goes on, another one is refused, and what is wrong is told at the door."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import PLACES, opened, small_config

from pairvpr_dist import PairVPR
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.run_folder import is_finished, open_folder, read_config, stage_folder
from shards.build import main as build


@pytest.fixture
def config(city_shards: Path, tmp_path: Path) -> TrainingConfig:
    return small_config("stage1", city_shards, tmp_path / "run")


def begin(folder: Path) -> None:
    """Leave what the first step of a run leaves."""
    (folder / "metrics.jsonl").write_text("")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_run_keeps_its_configuration(config: TrainingConfig) -> None:
    folder = opened(config)
    assert folder == stage_folder(config) == Path(config.run) / "stage1"
    assert read_config(folder) == config
    assert not is_finished(folder)


def test_the_same_command_goes_on(config: TrainingConfig) -> None:
    begin(opened(config))
    assert opened(config) == stage_folder(config)


@pytest.mark.parametrize(
    "changes",
    [
        ["data.workers=1"],
        ["train.zero_stage=3"],
        ["train.log_every=5", "train.checkpoint_every=7", "train.validate_every=9", "train.keep_checkpoints=4"],
        ["launch.processes=2", "launch.threads=1"],
        ["data.max_bad_places=3", "data.max_bad_share=0.5", "data.remote.read=shards", "data.remote.attempts=2"],
    ],
)
def test_what_does_not_change_the_result_may_change(
    config: TrainingConfig, city_shards: Path, changes: list[str]
) -> None:
    begin(opened(config))
    changed = small_config("stage1", city_shards, Path(config.run), changes)
    assert read_config(opened(changed)) == changed


def test_a_diverged_run_goes_on_with_gentler_settings_aloud(
    config: TrainingConfig, city_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(opened(config))
    gentler = ["optim.lr=0.0001", "optim.clip_grad_norm=0.5"]
    changed = small_config("stage1", city_shards, Path(config.run), gentler)
    assert read_config(opened(changed)).optim.lr == 0.0001
    assert "optim.lr was 0.001 and is 0.0001 from here on" in caplog.text


def test_shards_count_by_content_not_by_place(config: TrainingConfig, city_shards: Path, tmp_path: Path) -> None:
    begin(opened(config))
    moved = tmp_path / "moved"
    shutil.copytree(city_shards, moved)
    opened(small_config("stage1", moved, Path(config.run)))
    shutil.rmtree(moved)
    build(["synthetic", "--places", str(PLACES), "--views", "4", "--size", "96", "--seed", "5", "--out", str(moved)])
    with pytest.raises(UserError, match=r"the content of data\.shards"):
        opened(small_config("stage1", moved, Path(config.run)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed=3", "seed: 0, now 3"),
        ("data.places_per_batch=4", "data.places_per_batch: 6, now 4"),
        ("train.max_steps=9", "train.max_steps: None, now 9"),
        ("data.weights=[2]", "data.weights: [], now [2.0]"),
        ("model.decoder_depth=1", "model.decoder_depth: 2, now 1"),
    ],
)
def test_another_run_is_refused_with_the_key_that_differs(
    config: TrainingConfig, city_shards: Path, change: str, told: str
) -> None:
    folder = opened(config)
    begin(folder)
    before = content(folder)
    with pytest.raises(UserError) as refused:
        opened(small_config("stage1", city_shards, Path(config.run), [change]))
    assert f"{folder}: holds a run with other settings ({told}); name another run=..." in str(refused.value)
    assert content(folder) == before


def test_a_run_that_never_made_a_step_may_be_corrected(config: TrainingConfig, city_shards: Path) -> None:
    opened(config)
    corrected = small_config("stage1", city_shards, Path(config.run), ["optim.lr=0.5"])
    assert read_config(opened(corrected)) == corrected


@pytest.mark.parametrize("name", ["photograph.jpg", "config.yaml"])
@pytest.mark.parametrize("text", ["mine", "a: [1, 2", "stage: another", "[1]", "\x00"])
def test_a_folder_that_holds_something_else_is_refused_and_untouched(
    config: TrainingConfig, name: str, text: str
) -> None:
    folder = stage_folder(config)
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=str(folder)) as refused:
        opened(config)
    assert "\n" not in str(refused.value)
    assert content(folder) == {name: text.encode()}


def refused_at_the_door(config: TrainingConfig, told: str) -> None:
    with pytest.raises(UserError, match=told):
        opened(config)
    assert not Path(config.run).exists()


def test_shards_that_are_none(config: TrainingConfig, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    refused_at_the_door(replace(config, data=replace(config.data, shards=[gone])), "gone")
    refused_at_the_door(replace(config, data=replace(config.data, validation=[gone])), "gone")
    refused_at_the_door(replace(config, data=replace(config.data, shards=[])), "data.shards")
    twice = [*config.data.shards, *config.data.shards]
    refused_at_the_door(replace(config, data=replace(config.data, shards=twice)), "name every place once")


def test_batches_that_cannot_be(config: TrainingConfig, city_shards: Path) -> None:
    too_many = replace(config, data=replace(config.data, places_per_batch=PLACES + 1))
    refused_at_the_door(too_many, f"data.places_per_batch={PLACES + 1}: there are only {PLACES} places")
    refused_at_the_door(replace(config, launch=replace(config.launch, processes=4)), "data.places_per_batch=6")
    parts = replace(config, train=replace(config.train, accumulate=4))
    refused_at_the_door(parts, "train.accumulate=4: must divide the 6 places of a process")
    half = replace(config, train=replace(config.train, accumulate=2, precision="bf16", zero_stage=1))
    refused_at_the_door(half, "take train.zero_stage=2")
    lonely = small_config("stage2", city_shards, Path(config.run), ["data.places_per_batch=1"])
    refused_at_the_door(lonely, "needs at least 2 places in a batch")


def test_the_best_of_nothing(config: TrainingConfig) -> None:
    best = replace(config, train=replace(config.train, best_metric="validation/loss"))
    with pytest.raises(UserError, match=r"train.best_metric=validation/loss: nothing is validated; name data.valid"):
        opened(best)


def test_a_model_to_start_from_must_be_of_the_same_architecture(config: TrainingConfig, export: Path) -> None:
    refused_at_the_door(replace(config, init=replace(config.init, model=str(export))), "decoder_dim is 48, here 96")
    refused_at_the_door(replace(config, init=replace(config.init, model="gone.pth")), "gone.pth: no such file")
    refused_at_the_door(replace(config, init=replace(config.init, encoder="gone.pth")), "gone.pth: no such file")
    too_deep = replace(config, model=replace(config.model, frozen_blocks=4))
    refused_at_the_door(too_deep, "model.frozen_blocks=4: tiny has 3 blocks")


def test_a_run_is_finished_when_its_model_is_there(config: TrainingConfig) -> None:
    folder = opened(config)
    PairVPR(config.model).save_pretrained(folder / "export")
    assert is_finished(folder)


def test_a_second_command_does_not_change_what_the_first_one_runs(config: TrainingConfig) -> None:
    """It has to hold the lock before it writes; the first one's processes read the file at every start."""
    folder = opened(config)
    begin(folder)
    before = (folder / "config.yaml").read_bytes()
    open_folder(replace(config, train=replace(config.train, zero_stage=3)))
    assert (folder / "config.yaml").read_bytes() == before
