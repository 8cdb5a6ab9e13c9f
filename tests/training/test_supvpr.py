"""SUP-VPR by the same engine: equal on ranks and ZeRO stages, bit for bit after a stop, refused without cities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import log_of, run_program, weights_of
from supvpr_program import SMALL, STEPS

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.training.run_folder import check
from shards.build import main as build
from shards.synthetic_city import write_format

pytestmark = pytest.mark.timeout(900)  # many runs in one fixture; some minutes on a busy machine
METRICS = ["loss", "loss/descriptor", "loss/city", "city_accuracy", "grad_norm"]
WHOLE = 5e-3  # share of a tensor's whole movement: Adam's first updates blow up rounding of gradients near 0
STOP = 3

Runs = dict[tuple[str, int], Path]


@pytest.fixture(scope="module")
def cities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two cities of six places."""
    folder = tmp_path_factory.mktemp("cities")
    write_format(folder / "tree", "gsv-cities", places=6, views=4, cities=2, photograph_width=96)
    build(["gsv-cities", "--source", str(folder / "tree"), "--out", str(folder / "shards"), "--workers", "1"])
    return folder / "shards"


@pytest.fixture(scope="module")
def runs(cities: Path, city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Folders of runs by (name, processes); real places of two cities and synthetic ones of a third."""
    folders: Runs = {}
    whole: list[Any] = [[f"zero-{zero}", zero, None, []] for zero in range(4)]
    plans: dict[int, list[Any]] = {
        1: [["zero-0", 0, None, []], ["chunks", 2, None, ["objective.chunks=3"]]],
        2: [*whole, ["stopped", 2, STOP, []], ["stopped", 2, None, []]],
    }
    for world, plan in plans.items():
        out = tmp_path_factory.mktemp(f"supvpr-{world}")
        run_program("supvpr_program.py", world, cities, city_shards, out, json.dumps(plan))
        folders |= {(run[0], world): out / run[0] / "stage2" for run in plan}
    return folders


@pytest.mark.parametrize("run", [("chunks", 1), *(("zero-" + str(zero), 2) for zero in range(4))])
def test_a_run_is_the_same_on_one_process_and_two_at_every_zero_stage(runs: Runs, run: tuple[str, int]) -> None:
    folder, reference = runs[run], runs["zero-0", 1]
    ours, theirs = log_of(folder, METRICS), log_of(reference, METRICS)
    assert len(theirs) == STEPS
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=str(folder))
    start = initial_weights()
    weights, expected = weights_of(folder), weights_of(reference)
    assert weights.keys() == expected.keys() == start.keys()
    for name, weight in expected.items():
        if not name.endswith(("attn.qkv.bias", ".k.bias")):  # it cancels in the softmax
            assert (weights[name] - weight).norm() <= WHOLE * (weight - start[name]).norm(), name


def test_all_but_the_mask_token_is_trained(runs: Runs) -> None:
    """So that the comparison above does not hold of runs that do nothing."""
    before, after = initial_weights(), weights_of(runs["zero-0", 1])
    assert [name for name in before if torch.equal(before[name], after[name])] == ["encoder.mask_token"]


def initial_weights() -> dict[str, torch.Tensor]:
    config = load_config("stage2", "tiny", ["data.shards=none", *SMALL])
    torch.manual_seed(config.seed)
    return PairVPR(config.model).state_dict()


def test_a_stopped_run_ends_bit_for_bit(runs: Runs) -> None:
    stopped, whole = runs["stopped", 2], runs["zero-2", 2]
    assert log_of(stopped, METRICS) == log_of(whole, METRICS)
    model = Path("export") / "model.safetensors"
    assert (stopped / model).read_bytes() == (whole / model).read_bytes()


def test_the_export_is_a_model_and_its_card_names_the_synthetic_share(runs: Runs) -> None:
    export = runs["zero-2", 2] / "export"
    assert PairVPR.from_pretrained(export).config.city_blocks == 2
    assert "synthetic, 25 % of an epoch" in (export / "README.md").read_text()


def test_shards_without_cities_end_in_one_line(city_shards: Path, cities: Path, tmp_path: Path) -> None:
    def checked(*given: str) -> str:
        with pytest.raises(UserError) as refused:
            check(load_config("stage2", "tiny", [f"run={tmp_path}", *SMALL, *given]))
        text = str(refused.value)
        assert "\n" not in text
        return text

    write_format(tmp_path / "tree", "folder", places=6, test_places=0, views=4, size=64)
    build(["folder", "--source", str(tmp_path / "tree/train"), "--out", str(tmp_path / "plain"), "--workers", "1"])
    assert "plain: 6 places have no city" in checked(f"data.shards={tmp_path / 'plain'}")
    assert "plain: 6 places have no city" in checked(f"data.shards={cities}", f"data.validation={tmp_path / 'plain'}")
    assert "data.shards: all places lie in one city" in checked(f"data.shards={city_shards}")
    check(load_config("stage2", "tiny", [f"run={tmp_path}", *SMALL, f"data.shards={cities}",
                                         f"data.synthetic={city_shards}"]))  # fmt: skip
