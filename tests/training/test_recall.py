"""Recall during stage 2: that of an evaluation, on any number of processes; the best kept, exported and waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import opened, run_program, small_config, weights_of

from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json, read_json_lines
from pairvpr_dist.retrieval.evaluate import evaluate_model
from pairvpr_dist.training.checkpoint import Checkpoint

NAMES = [f"validation/{kind}@{n}" for kind in ("recall", "descriptor_recall") for n in (1, 5)]


@pytest.fixture(scope="module")
def runs(city_shards: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of recall_program.py by number of processes."""
    folders = {world: tmp_path_factory.mktemp(f"world-{world}") for world in (1, 2)}
    for world, out in folders.items():
        run_program("recall_program.py", world, city_shards, street, out)
    return folders


def measured(stage: Path) -> dict[int, list[float]]:
    lines = [line for line in read_json_lines(stage / "metrics.jsonl") if NAMES[0] in line]
    return {line["step"]: [line[name] for name in NAMES] for line in lines}


def test_it_is_the_same_on_two_processes(runs: dict[int, Path]) -> None:
    one, two = (measured(runs[world] / "learning" / "stage2") for world in (1, 2))
    assert list(one) == [2, 4, 6]
    assert one == two


@pytest.mark.parametrize("world", [1, 2])
def test_it_is_what_an_evaluation_of_the_best_export_gives(
    runs: dict[int, Path], world: int, street: Path, tmp_path: Path
) -> None:
    stage = runs[world] / "learning" / "stage2"
    found = measured(stage)
    best = max(found, key=lambda step: (found[step][0], -step))  # the first of the best
    facts = read_json(stage / "export" / "config.json", "an export")["facts"]
    assert facts["steps"] == best
    config = load_config("eval", "tiny", [f"eval.model={stage / 'export'}", f"eval.data={street}", "eval.top_k=5",
                                          "eval.recall_at=[1,5]"]).eval  # fmt: skip
    (figures,) = evaluate_model(config, tmp_path / "results")["ground_truths"].values()
    told = [figures[key][str(n)] for key in ("reranked_recall", "descriptor_recall") for n in (1, 5)]
    assert told == found[best]
    assert not list(stage.glob("recall-*"))


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_gets_no_better_ends_early_with_its_best(runs: dict[int, Path], world: int) -> None:
    stage = runs[world] / "standing" / "stage2"
    assert list(measured(stage)) == [1, 2, 3]
    assert read_json(stage / "export" / "config.json", "an export")["facts"]["steps"] == 1
    kept = {path.name for path in (stage / "checkpoints").glob("step-*")}
    assert kept == {"step-00000001", "step-00000003"}
    assert Checkpoint(stage / "checkpoints" / "step-00000003").progress.validations_since_best == 2


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_is_stopped_where_a_validation_is_due_makes_up_for_it(runs: dict[int, Path], world: int) -> None:
    learning, stopped = (runs[world] / name / "stage2" for name in ("learning", "stopped"))
    assert measured(stopped) == measured(learning)
    names = ["loss", "loss/pair", "grad_norm"]
    assert [line for line in read_json_lines(stopped / "history.jsonl") if line["event"] == "stopped"]
    training = [log_of_training(stage, names) for stage in (learning, stopped)]
    assert training[0] == training[1]
    ours, theirs = weights_of(learning), weights_of(stopped)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def log_of_training(stage: Path, names: list[str]) -> list[list[float]]:
    lines = [line for line in read_json_lines(stage / "metrics.jsonl") if "loss" in line]
    return [[line["step"], *(line[name] for name in names)] for line in lines]


def test_what_cannot_be_measured_is_refused_at_the_door(city_shards: Path, street: Path, tmp_path: Path) -> None:
    def refuse(told: str, *changes: str) -> None:
        with pytest.raises(UserError, match=told):
            opened(small_config("stage2", city_shards, tmp_path, changes))

    refuse("gone: no such folder", "recall.data=gone")
    refuse("recall.protocol=foldr: unknown", f"recall.data={street}", "recall.protocol=foldr")
    refuse("must be at least the last of recall.recall_at", f"recall.data={street}", "recall.top_k=3")
    refuse("is not measured; did you mean 'validation/recall@", f"recall.data={street}", "recall.top_k=10",
           "train.best_metric=validation/recall@2")  # fmt: skip
    refuse("objective.descriptor_loss=Nonsense", "objective.descriptor_loss=Nonsense")
    refuse("nothing is validated; name data.validation=... or recall.data", "train.best_metric=validation/recall@1")
