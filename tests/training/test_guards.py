"""What ends a run that has gone wrong."""

from __future__ import annotations

import csv
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import PLACES, log_of, overrides, run_program, small_config
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.errors import UserError
from pairvpr_dist.training.guards import BadPlaces, Guard
from pairvpr_dist.training.run_folder import open_folder

ROOT = Path(__file__).parents[2]
DAMAGED = 5  # places of a city


def test_only_skips_in_a_row_end_a_run(tmp_path: Path) -> None:
    guard = Guard(tmp_path, max_skipped_steps=3)
    for step, applied in enumerate([False, False, True, False, False, True]):
        guard.check_update(step, applied)
    guard.check_update(6, False)
    guard.check_update(7, False)
    with pytest.raises(UserError, match=r"step 8: 3 updates in a row were skipped.*there is no checkpoint"):
        guard.check_update(8, False)


def test_the_end_names_the_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-00000020\n")
    with pytest.raises(UserError, match=r"step 25: 1 updates in a row .*; the last checkpoint is step-00000020 in"):
        Guard(tmp_path, max_skipped_steps=1).check_update(25, False)


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
    folder = open_folder(small_config("stage1", city_shards, tmp_path / "run", ["launch.processes=2"]))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with pytest.raises(ChildFailedError) as failed:
        run_program("one_sided_program.py", 2, folder)
    told = [failure.message for failure in failed.value.failures.values() if failure.exitcode == 2]
    assert told == [f"{folder}/absent/config.yaml: no such file; it should be a run's configuration"]
    assert "Traceback" not in capfd.readouterr().err
