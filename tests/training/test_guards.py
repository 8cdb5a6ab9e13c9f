"""What ends a run that has gone wrong."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_program import BACKWARD, BETWEEN, CASES, OUTPUT, PARAMETER, PLACE, QUICK, STEP, WEIGHT, Case
from small_runs import PLACES, log_of, opened, overrides, run_program, small_config
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import TrainConfig
from pairvpr_dist.training.guards import BadPlaces, Guard, Rewind
from pairvpr_dist.training.replay import inspect_replay

ROOT = Path(__file__).parents[2]
DAMAGED = 5  # places of a city


def train(tmp_path: Path, skipped: int, rewinds: int = 0) -> TrainConfig:
    changes = [f"train.max_skipped_steps={skipped}", f"train.max_rewinds={rewinds}"]
    return small_config("stage1", Path("none"), tmp_path, changes).train


def test_only_skips_in_a_row_end_a_run(tmp_path: Path) -> None:
    guard = Guard(tmp_path, train(tmp_path, skipped=3))
    for step, applied in enumerate([False, False, True, False, False, True]):
        guard.check_update(step, applied, rewinds=0)
    guard.check_update(6, False, rewinds=0)
    guard.check_update(7, False, rewinds=0)
    with pytest.raises(UserError, match=r"step 8: 3 updates in a row were skipped.*there is no checkpoint"):
        guard.check_update(8, False, rewinds=0)


def test_the_end_names_the_last_good_checkpoint_and_the_replay(tmp_path: Path) -> None:
    """Good is one from before the first step that was skipped; a replay of other steps is not named."""
    for step in (10, 20, 24):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    for step in (3, 24):
        (tmp_path / "replays" / f"step-{step:08d}").mkdir(parents=True)
    guard = Guard(tmp_path, train(tmp_path, skipped=2))
    guard.check_update(24, False, rewinds=0)
    told = (
        r"step 25: 2 updates in a row .*; the last checkpoint is step-00000020 in .* pairvpr inspect .*/step-00000024"
    )
    with pytest.raises(UserError, match=told):
        guard.check_update(25, False, rewinds=0)
    guard.check_update(30, False, rewinds=0)
    with pytest.raises(UserError, match=r"last checkpoint is step-00000024 in .*train.max_rewinds$"):
        guard.check_update(31, False, rewinds=0)


def test_a_run_goes_back_as_often_as_it_may(tmp_path: Path) -> None:
    guard = Guard(tmp_path, train(tmp_path, skipped=2, rewinds=2))

    def skip_two(rewinds: int) -> None:
        guard.check_update(11, True, rewinds)
        guard.check_update(12, False, rewinds)
        guard.check_update(13, False, rewinds)

    with pytest.raises(UserError, match="there is no checkpoint"):
        skip_two(rewinds=0)
    (tmp_path / "checkpoints" / "step-00000012").mkdir(parents=True)  # already skipped
    with pytest.raises(UserError, match="there is no checkpoint"):
        skip_two(rewinds=0)
    (tmp_path / "checkpoints" / "step-00000010").mkdir()
    for rewinds in (0, 1):
        with pytest.raises(Rewind) as back:
            skip_two(rewinds)
        assert back.value.bad_steps == range(12, 14)
    with pytest.raises(UserError, match=r"step 13: 2 updates .*, after 2 rewinds; the last .* step-00000010"):
        skip_two(rewinds=2)


def investigated(cases: Sequence[Case], shards: Path, folder: Path) -> dict[Case, dict[str, Any]]:
    """What was found out of steps that went wrong, on as many ranks as the cases ask for."""
    found = {}
    for world in {case.world for case in cases}:
        own = [case for case in cases if case.world == world]
        (folder / str(world)).mkdir()
        run_program("fault_program.py", world, shards, folder / str(world), *map(CASES.index, own))
        rows = json.loads((folder / str(world) / "rows.json").read_text())
        found |= dict(zip(own, rows, strict=True))
    return found


@pytest.fixture(scope="module")
def quick(city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Case, dict[str, Any]]:
    return investigated(QUICK, city_shards, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def thorough(city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Case, dict[str, Any]]:
    cases = [case for case in CASES if case not in QUICK]
    return investigated(cases, city_shards, tmp_path_factory.mktemp("thorough"))


EXPECTED = {  # phase and module
    "output": ("forward", OUTPUT),
    "no room": ("forward", OUTPUT),
    "weight": ("forward", WEIGHT),
    "loss": ("forward", "MaskedModelling"),
    "backward": ("backward", BACKWARD),
    "between": ("backward", BETWEEN.removesuffix(".q")),
    "parameter": ("gradient of the parameter", PARAMETER),
    "once": ("nowhere", ""),
}


def check_investigation(case: Case, seen: dict[str, Any]) -> None:
    assert seen["changed"] == []
    assert seen["updates"] == [0, 0]
    assert seen["applied"] == [False, case.fault not in ("weight", "loss")]  # which stay in the weights
    (event,) = seen["events"]
    assert (event["event"], event["step"]) == ("skipped", STEP + 1)
    assert (event["phase"], event["module"]) == EXPECTED[case.fault]
    last = case.world - 1
    everywhere, nowhere = case.fault in ("weight", "loss"), case.fault == "once"
    assert event["ranks"] == ([] if nowhere else list(range(case.world)) if everywhere else [last])
    if case.fault in ("output", "no room"):
        assert event["places"] == [seen["names"][last][PLACE]]
    else:
        assert event["places"] == [name for r in event["ranks"] for name in seen["names"][r]]
    kept = [] if case.fault == "no room" else [f"step-{STEP + 1:08d}"]
    assert [Path(replay).name for replay in seen["replays"]] == kept
    assert event["replay"] == next(iter(kept), None)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: "-".join(map(str, case)))
def test_a_refused_step_is_looked_into_and_changes_nothing(case: Case, quick: dict[Case, dict[str, Any]]) -> None:
    check_investigation(case, quick[case])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in QUICK], ids=lambda case: "-".join(map(str, case))
)
def test_every_kind_of_refused_step(case: Case, thorough: dict[Case, dict[str, Any]]) -> None:
    check_investigation(case, thorough[case])
    if case.fault in ("weight", "loss"):
        assert "            reproduced\n" in inspect_replay(Path(thorough[case]["replays"][0]))


@pytest.fixture(scope="module")
def damaged_city(city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small city with all images of its first places zeroed."""
    folder = Path(shutil.copytree(city_shards, tmp_path_factory.mktemp("damaged") / "shards"))
    city = ShardSet.open(folder)
    for record in city.members[: city.places["first_image"][DAMAGED]]:
        with city.shard_path(record["shard"]).open("r+b") as tar:
            tar.seek(record["offset"])
            tar.write(bytes(record["size"]))
    return folder


def lines_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "bad_places.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_bad_places_are_told_once_and_kept(
    damaged_city: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config("stage1", damaged_city, tmp_path, ["data.max_bad_places=5"])

    def one_epoch(bad_places: BadPlaces) -> None:
        loader = EpochLoader(config.data, config.model.image_size, config.seed, 0, 1)
        list(loader.batches(0, loader.steps_per_epoch))
        bad_places.gather(loader)
        bad_places.gather(loader)

    bad_places = BadPlaces(tmp_path, config.data, PLACES)
    assert len(bad_places) == 0
    assert not (tmp_path / "bad_places.csv").exists()
    one_epoch(bad_places)
    city = ShardSet.open(damaged_city)
    expected = {f"{city.manifest.datasets[0]}/{city.place_key(i)}" for i in range(DAMAGED)}
    listed = lines_of(tmp_path)
    assert {line["place"] for line in listed} == expected
    assert len(listed) == len(bad_places) == len(caplog.records) == DAMAGED
    assert all(line["reason"].startswith("checksum") and "/shard-" in line["file"] for line in listed)
    assert all(record.message.startswith("replaced a place that cannot be read: ") for record in caplog.records)

    resumed = BadPlaces(tmp_path, config.data, PLACES)
    assert len(resumed) == DAMAGED
    one_epoch(resumed)
    assert len(caplog.records) == DAMAGED
    assert lines_of(tmp_path) == listed


def test_a_budget_of_bad_places(damaged_city: Path, tmp_path: Path) -> None:
    """More than the number and more than the share; a resumed run is over it until the list is gone."""
    config = small_config("stage1", damaged_city, tmp_path)
    for number, share, over in [(4, 0.4, True), (5, 0.0, False), (0, 0.42, False), (0, 0.0, True)]:
        data = replace(config.data, max_bad_places=number, max_bad_share=share)
        loader = EpochLoader(data, config.model.image_size, config.seed, 0, 1)
        list(loader.batches(0, loader.steps_per_epoch))
        bad_places = BadPlaces(tmp_path, data, PLACES)
        if over:
            told = r"5 of 12 places cannot .*checksum.*bad_places.csv\); repair"
            with pytest.raises(UserError, match=told):
                bad_places.gather(loader)
            with pytest.raises(UserError, match=told):
                BadPlaces(tmp_path, data, PLACES)
        else:
            bad_places.gather(loader)
        (tmp_path / "bad_places.csv").unlink()
    (tmp_path / "bad_places.csv").write_text("mine")
    with pytest.raises(UserError, match=r"bad_places\.csv: not the list of a run's bad places; remove it"):
        BadPlaces(tmp_path, config.data, PLACES)


def test_ranks_share_one_budget(damaged_city: Path, tmp_path: Path) -> None:
    """The real run of two ranks: one count, one list and one line, though no rank meets all bad places."""
    changes = ["launch.processes=2", "data.max_bad_places=4", "data.max_bad_share=0.1"]
    arguments = overrides("stage1", damaged_city, tmp_path / "run", changes)
    program = [sys.executable, "launchers/local.py", "stage1", "tiny", *arguments]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("error: 5 of 12 places cannot be read, more than data.max_bad_places=4 and") == 1
    assert ended.stderr.count("replaced a place that cannot be read") == DAMAGED
    assert len(lines_of(tmp_path / "run" / "stage1")) == DAMAGED
    (first,) = log_of(tmp_path / "run" / "stage1", ["bad_places"])  # the second step is one too many
    assert first[0] == 1
    assert 0 < first[1] < DAMAGED


def test_a_mistake_on_one_rank_is_all_that_is_told(
    city_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = opened(small_config("stage1", city_shards, tmp_path / "run", ["launch.processes=2"]))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with pytest.raises(ChildFailedError) as failed:
        run_program("one_sided_program.py", 2, folder)
    told = [failure.message for failure in failed.value.failures.values() if failure.exitcode == 2]
    assert told == [f"{folder}/absent/config.yaml: no such file; it should be a run's configuration"]
    assert "Traceback" not in capfd.readouterr().err
