"""What the loader must do: places, cores and bytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.errors import UserError
from pairvpr_dist.scaling.assumptions import load_assumptions, split_overrides
from pairvpr_dist.scaling.loading import data_of_shards, given_places, loading_of, paper_data
from pairvpr_dist.settings import TrainingConfig
from shards.build import main as build

ASSUMPTIONS = load_assumptions()


@cache
def config_of(stage: str, *changes: str, size: str = "vitb") -> TrainingConfig:
    return load_config(stage, size, ["data.shards=[]", *changes])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "shards"
    build(["synthetic", "--places", "6", "--views", "4", "--size", "32", "--out", str(folder), "--workers", "1"])
    return folder


def test_the_paper_s_data_are_named_with_their_numbers() -> None:
    data = paper_data(config_of("stage1"), ASSUMPTIONS)
    assert data.places == sum(ASSUMPTIONS.data[name].places for name in ("sfxl", "gsv-cities", "gldv2"))
    assert data.steps_per_epoch == data.places // 512
    assert "assumed" in data.source
    assert all(f"{name} {ASSUMPTIONS.data[name].places:,}" in data.source for name in ("sfxl", "gsv-cities", "gldv2"))


def test_batches_of_one_city_leave_some_places_over() -> None:
    data = paper_data(config_of("stage2"), ASSUMPTIONS)
    assert data.places == 62_500
    assert 605 < data.steps_per_epoch < 625  # the published run takes 6,225 steps in 10 epochs of 23 cities


def test_shards_tell_their_places_and_bytes_themselves(shards: Path) -> None:
    config = config_of("stage1", f"data.shards={shards}", "data.places_per_batch=2", size="tiny")
    data, loader = data_of_shards(config, ASSUMPTIONS), EpochLoader(config.data, 70, 0, 0, 1)
    assert (data.places, data.steps_per_epoch) == (loader.places, loader.steps_per_epoch)
    stored = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert data.image_bytes == pytest.approx(stored / loader.corpus.sets[0].manifest.images)
    assert str(shards) in data.source


@settings(deadline=None, max_examples=30)
@given(
    st.floats(1, 1e5), st.sampled_from([1, 8]), st.sampled_from([0, 1, 8, 64]), st.sampled_from(["stage1", "stage2"])
)
def test_cores_and_bytes_grow_with_the_pace(pace: float, gpus: int, workers: int, stage: str) -> None:
    config = config_of(stage, f"launch.processes={gpus}", f"data.workers={workers}")
    data = given_places(config, ASSUMPTIONS, 1000)
    one, two = (loading_of(config, ASSUMPTIONS, data, times * pace) for times in (1, 2))
    assert two.cores == pytest.approx(2 * one.cores)
    assert two.bytes_per_second == pytest.approx(2 * one.bytes_per_second)
    assert one.most_places_per_second == two.most_places_per_second > 0
    # As many workers as cores are wanted keep the pace, and no fewer.
    keeps = max(1, min(workers, ASSUMPTIONS.worker_cores))
    assert (one.cores <= keeps * (1 + 1e-9)) == (pace <= one.most_places_per_second * (1 + 1e-9))


def test_a_core_reads_pairs_at_the_measured_rate() -> None:
    """At worker_share 1 and 224 px a core of GSV-Cities gives the pairs a second of docs/performance.md."""
    assumptions = load_assumptions(["worker_share=1.0", "stages.stage1=[gsv-cities]"])
    config = config_of("stage1", "launch.processes=1", "data.workers=1")
    loading = loading_of(config, assumptions, paper_data(config, assumptions), 1.0)
    assert loading.most_places_per_second == pytest.approx(678)
    assert loading.bytes_per_second == pytest.approx(2 * 29e3)


def test_fewer_places_than_a_batch() -> None:
    with pytest.raises(UserError, match=r"--places: 5 places are fewer than a batch, data\.places_per_batch=512"):
        given_places(config_of("stage1"), ASSUMPTIONS, 5)


def test_overrides_of_the_plan_are_told_from_those_of_the_run() -> None:
    assert split_overrides(["train.epochs=1", "plan.cores_per_gpu=8"]) == (["train.epochs=1"], ["cores_per_gpu=8"])
    assert load_assumptions(["cores_per_gpu=8", "data.sfxl.places=7"]).data["sfxl"].places == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cores_per_gp=8", "plan.cores_per_gp=8: unknown key 'cores_per_gp'; did you mean 'cores_per_gpu'?"),
        ("usable_memory=1.5", "plan.usable_memory=1.5: must lie in (0, 1]"),
        ("cores_per_gpu=1", "plan.cores_per_gpu=1: must be more than plan.spare_cores="),
        ("copy_rate=0", "plan.copy_rate=0.0: must be positive"),
        ("stages.stage1=[sfxl,mapillary]", "mapillary"),
        ("data.sfxl.image_bytes=-1", "plan.data: image_bytes=-1.0: must be positive"),
        ("tie", "not an override"),
    ],
)
def test_mistakes_are_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_assumptions([text])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
