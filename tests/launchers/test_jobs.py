"""Which configurations a command stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.jobs import jobs
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import EvalRunConfig, Stage1Config, Stage2Config, SupVPRConfig

GIVEN = ["data.shards=here", "eval.data=there"]


def test_a_stage_is_one_job() -> None:
    (config,) = jobs("stage2", "vitl", ["data.shards=here", "init.model=m"])
    assert isinstance(config, Stage2Config)
    assert (config.init.model, config.data.shards) == ("m", ["here"])


def test_a_pipeline_is_three_jobs_that_take_each_others_results() -> None:
    stage1, stage2, evaluation = jobs("pipeline", "vitb", [*GIVEN, "run=out/mine"])
    assert isinstance(stage1, Stage1Config)
    assert isinstance(stage2, Stage2Config)
    assert isinstance(evaluation, EvalRunConfig)
    assert {config.run for config in (stage1, stage2, evaluation)} == {"out/mine"}
    assert stage2.init.model == "out/mine/stage1/export"
    assert evaluation.eval.model == "out/mine/stage2/export"
    assert evaluation.eval.data == "there"


def test_a_recipe_goes_to_the_stage_that_has_it() -> None:
    given = [*GIVEN, "objective=supvpr", "objective.negatives=3", "data.synthetic=city", "train.epochs=2"]
    stage1, stage2, _ = jobs("pipeline", "tiny", given)
    assert isinstance(stage1, Stage1Config)
    assert isinstance(stage2, SupVPRConfig)
    assert (stage2.objective.negatives, stage2.train.epochs, stage1.train.epochs) == (3, 2, 2)
    assert stage1.data.synthetic == stage2.data.synthetic == ["city"]
    assert jobs("pipeline", "tiny", [*GIVEN, "stage2.objective=supvpr"])[1].recipe == "supvpr"
    with pytest.raises(UserError, match=r"stage2\.model\.city_blocks"):
        jobs("pipeline", "tiny", [*GIVEN, "objective=supvpr", "model.city_blocks=2", "model.fused_depths=2"])


def test_a_run_is_named_by_its_size_unless_told() -> None:
    stage1, stage2, _ = jobs("pipeline", "vitl", GIVEN)
    assert stage1.run == "runs/vitl"
    assert stage2.init.model == "runs/vitl/stage1/export"


def test_a_run_may_have_any_name() -> None:
    stage1, stage2, evaluation = jobs("pipeline", "tiny", [*GIVEN, 'run="/tmp/a: b #c\'s"'])
    assert stage1.run == "/tmp/a: b #c's"
    assert stage2.init.model == "/tmp/a: b #c's/stage1/export"
    assert evaluation.eval.model == "/tmp/a: b #c's/stage2/export"


def test_an_override_goes_to_every_stage_that_knows_its_key() -> None:
    stage1, stage2, evaluation = jobs("pipeline", "tiny", [*GIVEN, "train.zero_stage=1", "seed=5", "eval.top_k=20"])
    assert stage1.train.zero_stage == stage2.train.zero_stage == 1
    assert stage1.seed == stage2.seed == evaluation.seed == 5
    assert evaluation.eval.top_k == 20


def test_a_prefix_sends_it_to_one_stage() -> None:
    changes = ["stage1.train.epochs=7", "stage2.train.epochs=8", "stage2.data.shards=other"]
    stage1, stage2, _ = jobs("pipeline", "tiny", [*GIVEN, *changes])
    assert (stage1.train.epochs, stage2.train.epochs) == (7, 8)
    assert (stage1.data.shards, stage2.data.shards) == (["here"], ["other"])


def test_initial_weights_are_those_of_the_first_stage() -> None:
    stage1, stage2, _ = jobs("pipeline", "vitb", [*GIVEN, "init.model=before", "init.encoder=dino.pth"])
    assert (stage1.init.model, stage1.init.encoder) == ("before", "dino.pth")
    assert (stage2.init.model, stage2.init.encoder) == ("runs/vitb/stage1/export", None)


def test_a_key_of_one_objective_finds_its_stage() -> None:
    stage1, stage2, _ = jobs("pipeline", "tiny", [*GIVEN, "objective.mask_ratio=0.8", "objective.pair_loss_weight=3"])
    assert stage1.objective.mask_ratio == 0.8
    assert stage2.objective.pair_loss_weight == 3


def test_a_link_may_be_overridden() -> None:
    _, stage2, evaluation = jobs("pipeline", "tiny", [*GIVEN, "stage2.init.model=mine", "eval.model=yours"])
    assert (stage2.init.model, evaluation.eval.model) == ("mine", "yours")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("stage3", "tiny", []), "stage 'stage3' is unknown; did you mean 'stage"),
        (("pipelien", "tiny", []), "did you mean 'pipeline'?"),
        (("pipeline", "tinny", GIVEN), "did you mean 'tiny'?"),
        (("pipeline", "tiny", [*GIVEN, "train.epoch=1"]), "did you mean 'train.epochs'?"),
        (("pipeline", "tiny", [*GIVEN, "stage2.train.epoch=1"]), "did you mean 'train.epochs'?"),
        (("pipeline", "tiny", [*GIVEN, "eval.topk=1"]), "did you mean 'eval.top_k'?"),
        (("pipeline", "tiny", [*GIVEN, "epochs"]), "write key=value"),
        (("pipeline", "tiny", ["data.shards=here"]), "no value for eval.data"),
        (("pipeline", "tiny", ["eval.data=there"]), "no value for data.shards"),
    ],
)
def test_mistakes_are_told_with_the_remedy(arguments: tuple[str, str, list[str]], told: str) -> None:
    with pytest.raises(UserError) as refused:
        jobs(*arguments)
    assert told in str(refused.value)


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs("pipeline", "tiny", GIVEN)
    assert list(tmp_path.iterdir()) == []
