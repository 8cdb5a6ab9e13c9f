"""Which jobs a command stands for, and what it may not ask for. What SLURM does with them is in tests/slurm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchers.cluster import load_profile
from launchers.planning import (
    Request,
    has_ended,
    known_to,
    make_plan,
    point_name,
    split_cluster_keys,
    sweep_values,
)
from pairvpr_dist.errors import UserError

GIVEN = ("data.shards=here", "eval.data=there")


def test_every_stage_has_its_own_size_of_job() -> None:
    plan = make_plan(Request("pipeline", "vitb", (*GIVEN, "cluster.nodes=2", "stage2.cluster.nodes=1", "run=out")))
    (point,) = plan.points
    stage2 = point.stages[1]
    assert [job.config.launch.processes for job in point.stages] == [8, 4, 8]
    assert [job.profile.nodes for job in point.stages] == [2, 1, 2]
    assert stage2.config.init.model == "out/stage1/export"
    assert plan.base == point.run == Path("out")


def test_a_profile_speaks_of_the_run_and_the_command_line_goes_before_it(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("overrides: [data.workers=3, train.log_every=7, eval.workers=2]\n")
    request = Request("pipeline", "tiny", (*GIVEN, "train.log_every=9"), str(profile))
    stage1, _, evaluation = make_plan(request).points[0].stages
    assert (stage1.config.data.workers, stage1.config.train.log_every) == (3, 9)
    assert evaluation.config.eval.workers == 2
    alone = make_plan(replace(request, stage="stage1", overrides=GIVEN[:1])).points[0].stages[0]  # has no eval.workers
    assert (alone.config.data.workers, alone.config.train.log_every) == (3, 7)
    profile.write_text("overrides: [data.wrkers=3]\n")
    with pytest.raises(UserError, match=r"did you mean 'data\.workers'"):
        make_plan(replace(request, stage="stage1", overrides=GIVEN[:1]))


def test_what_was_recorded_goes_before_profiles_of_now() -> None:
    recorded = {"stage1": load_profile("default", ["nodes=3", "gpus_per_node=1", "overrides=[data.workers=5]"])}
    (job,) = make_plan(Request("stage1", "tiny", GIVEN[:1], profiles=recorded)).points[0].stages
    assert job.profile == recorded["stage1"]
    assert job.config.data.workers != 5  # the recorded overrides of the run hold it already
    (job,) = make_plan(Request("stage1", "tiny", (*GIVEN[:1], "cluster.nodes=2"), profiles=recorded)).points[0].stages
    assert (job.profile.nodes, job.config.launch.processes) == (2, 2)


def test_a_sweep_is_a_run_for_each_combination() -> None:
    sweep = (sweep_values("optim.lr=1e-3,2e-3"), sweep_values("optim.betas=[0.9,0.95],[0.8,0.9]"))
    plan = make_plan(Request("stage1", "tiny", (*GIVEN[:1], "run=runs/my sweep"), sweep=sweep))
    assert plan.base == Path("runs/my sweep")
    told = {str(p.run): (p.stages[0].config.optim.lr, p.stages[0].config.optim.betas) for p in plan.points}
    assert told == {
        "runs/my sweep/optim.lr=1e-3,optim.betas=_0.9,0.95_": (1e-3, [0.9, 0.95]),
        "runs/my sweep/optim.lr=1e-3,optim.betas=_0.8,0.9_": (1e-3, [0.8, 0.9]),
        "runs/my sweep/optim.lr=2e-3,optim.betas=_0.9,0.95_": (2e-3, [0.9, 0.95]),
        "runs/my sweep/optim.lr=2e-3,optim.betas=_0.8,0.9_": (2e-3, [0.8, 0.9]),
    }
    again = make_plan(Request("stage1", "tiny", plan.points[2].overrides))
    assert again.points[0].stages[0].config == plan.points[2].stages[0].config


def test_a_sweep_of_a_pipeline_keeps_its_points_apart() -> None:
    plan = make_plan(Request("pipeline", "tiny", GIVEN, sweep=(("seed=1", "seed=2"),)))
    assert [[job.config.run for job in stage] for stage in plan.stages] == [
        ["runs/tiny/seed=1", "runs/tiny/seed=2"]
    ] * 3
    assert [job.config.init.model for job in plan.stages[1]] == [f"runs/tiny/seed={i}/stage1/export" for i in (1, 2)]


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request("stage1", "tiny"), "data.shards=..."),
        (Request("stage3", "tiny"), "stage 'stage3' is unknown"),
        (Request("stage3", "tiny", cluster="h100x8"), "stage 'stage3' is unknown"),  # a profile with overrides
        (Request("stage1", "tiny", (*GIVEN[:1], "launch.processes=3")), "give cluster.nodes="),
        (Request("pipeline", "tiny", (*GIVEN, "stage2.launch.processes=3")), "give cluster.nodes="),
        (Request("stage1", "tiny", (*GIVEN[:1], "cluster.node=3")), "did you mean 'nodes'?"),
        (Request("stage1", "tiny", GIVEN[:1], "h100"), "did you mean 'h100x8'?"),
        (Request("stage1", "tiny", GIVEN[:1], sweep=(("seed=1", "seed=1"),)), "the same run folder"),
        (Request("stage1", "tiny", GIVEN[:1], sweep=(("sed=1", "sed=2"),)), "did you mean 'seed'?"),
    ],
)
def test_mistakes_are_told_with_the_remedy(request_: Request, told: str) -> None:
    with pytest.raises(UserError) as refused:
        make_plan(request_)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["seed", "=1", "seed="])
def test_a_sweep_needs_key_and_values(text: str) -> None:
    with pytest.raises(UserError, match="write key=v1,v2"):
        sweep_values(text)


@given(st.lists(st.from_regex(r"[a-z0-9./-]+|\[[a-z0-9,]*\]", fullmatch=True), min_size=1))
def test_values_of_a_sweep_come_back(values: list[str]) -> None:
    assert sweep_values("a.b=" + ",".join(values)) == tuple(f"a.b={value}" for value in values)


@given(st.lists(st.text(), min_size=1))
def test_names_of_points_are_names_of_folders(values: list[str]) -> None:
    assert not set(point_name(values)) & set("/\\\0\n:%'\" ")


def test_keys_of_the_cluster_are_told_from_those_of_the_run() -> None:
    own, of_cluster = split_cluster_keys(["seed=1", "cluster.nodes=2", "eval.cluster.hours=1", "eval.top_k=5"])
    assert own == ["seed=1", "eval.top_k=5"]
    assert of_cluster == {"": ["nodes=2"], "stage1": [], "stage2": [], "eval": ["hours=1"]}


def test_overrides_of_other_stages_are_left_out_and_unknown_ones_are_not() -> None:
    asked = ["data.workers=1", "eval.top_k=5", "seed=1", "nonsense=1"]
    assert known_to("eval", asked) == ["eval.top_k=5", "seed=1", "nonsense=1"]
    assert known_to("pipeline", asked) == asked


def test_a_stage_has_ended_when_its_result_is_there(tmp_path: Path) -> None:
    plan = make_plan(Request("pipeline", "tiny", (*GIVEN, f"run={tmp_path}")))
    stage1, _, evaluation = plan.points[0].stages
    assert not has_ended(stage1)
    for result in ("stage1/export/config.json", "eval/results.json"):
        (tmp_path / result).parent.mkdir(parents=True)
        (tmp_path / result).write_text("{}")
    assert has_ended(stage1)
    assert has_ended(evaluation)
