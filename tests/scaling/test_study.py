"""What a study's file means: its points, and what is refused at the door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pairvpr_dist.errors import UserError
from pairvpr_dist.scaling.study import STUDIES, load_study, make_points, study_file
from pairvpr_dist.training.run_folder import check_shares

FILE = """title: A study
kind: throughput
stage: stage1
size: tiny
warmup_steps: 1
measured_steps: 3
overrides: [data.places_per_batch=12]
synthetic: {places: 12, views: 4, size: 64}
"""


def written(folder: Path, more: str = "sweep: {launch.processes: [1, 2], train.zero_stage: [0, 2]}\n") -> Path:
    path = folder / "study.yaml"
    replaced = {line.partition(":")[0] for line in more.splitlines()}
    lines = [line for line in FILE.splitlines() if line.partition(":")[0] not in replaced]
    path.write_text("\n".join([*lines, more]))
    return path


def test_a_sweep_is_the_product_of_its_values_and_every_point_a_whole_configuration(tmp_path: Path) -> None:
    points = make_points(load_study(written(tmp_path)), tmp_path)
    shape = [(p.config.launch.processes, p.config.train.zero_stage) for p in points]
    assert shape == [(1, 0), (1, 2), (2, 0), (2, 2)]
    assert {p.config.train.max_steps for p in points} == {4}
    assert {p.config.data.places_per_batch for p in points} == {12}
    assert len({p.config.run for p in points}) == 4
    assert all(p.name.startswith(f"processes={n},zero_stage={z}-") for p, (n, z) in zip(points, shape, strict=True))


def test_points_may_be_named_one_by_one_and_may_differ_in_size(tmp_path: Path) -> None:
    more = "points: [{size: tiny, data.places_per_batch: 6}, {size: vits, model.image_size: 70}]\n"
    points = make_points(load_study(written(tmp_path, more)), tmp_path)
    assert [p.config.model.encoder for p in points] == ["tiny", "dinov2_vits14_reg"]
    assert [p.config.data.places_per_batch for p in points] == [6, 12]


def test_rounds_are_points_of_their_own_that_take_turns(tmp_path: Path) -> None:
    once = make_points(load_study(written(tmp_path)), tmp_path)
    points = make_points(load_study(written(tmp_path), ["study.repeat=3"]), tmp_path)
    assert [p.digest for p in points[:4]] == [p.digest for p in once]
    assert [p.setting for p in points] == [p.setting for p in once] * 3
    assert len({p.digest for p in points}) == len({p.config.run for p in points}) == 12
    assert all(f"run={json.dumps(p.config.run)}" in p.overrides for p in points)


def test_overrides_reach_every_point_and_the_study_itself(tmp_path: Path) -> None:
    study = load_study(written(tmp_path), ["model.decoder_depth=1", "study.measured_steps=7"])
    assert {(p.config.model.decoder_depth, p.config.train.max_steps) for p in make_points(study, tmp_path)} == {(1, 8)}


def test_a_digest_is_of_what_is_measured_and_not_of_where(tmp_path: Path) -> None:
    path = written(tmp_path, "sweep: {seed: [0, 1]}\n")
    here, there = (make_points(load_study(path), tmp_path / name) for name in "ab")
    assert [p.digest for p in here] == [p.digest for p in there]
    assert [p.config.run for p in here] != [p.config.run for p in there]
    for change in (
        "model.decoder_depth=1",
        "study.measured_steps=4",
        "study.warmup_steps=0",
        "study.synthetic.views=5",
    ):
        other = make_points(load_study(path, [change]), tmp_path / "a")
        assert not {p.digest for p in here} & {p.digest for p in other}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("sweeps: {launch.processes: [1]}\n", "unknown key 'sweeps'; did you mean 'sweep'"),
        ("sweep: {train.zero_stag: [1]}\n", "unknown key 'train.zero_stag'; did you mean 'train.zero_stage'"),
        ("sweep: {train.zero_stage: [1, 7]}\n", "must be 0, 1, 2 or 3"),
        ("sweep: {train.zero_stage: 1}\n", "must be a list of values"),
        ("sweep: {train.zero_stage: [1, 1]}\n", "two points are the same run"),
        ("sweep: {size: [tiny, vist]}\n", "size 'vist' is unknown"),
        ("", "give either sweep or points"),
        ("sweep: {seed: [1]}\nshards: [x]\n", "give shards or synthetic"),
        ("sweep: {seed: [1]}\ngpu: h10\n", "gpu=h10: not in .*did you mean 'h100'"),
        ("sweep: {seed: [1]}\nvalidation: [x]\n", "validation=.*synthetic.validation_places"),
        ("sweep: {seed: [1]}\nkind: loss\nrepeat: 2\n", "repeat=2: .*sweep over seed"),
        ("sweep: {train.max_steps: [null]}\n", "train.max_steps=None: must be more than study.warmup_steps=1"),
        ("sweep: {train.max_steps: [9, 1]}\n", "train.max_steps=1: must be more than study.warmup_steps=1"),
        ("sweep: {data.shards: [[x]]}\n", "data.shards: cannot differ between points; give study.shards"),
        ("points: [{run: x}]\n", "run: cannot differ between points; give --out"),
        ("sweep: {seed: [1]}\noverrides: [stage=stage2]\n", "stage=stage2: a study sets it; give study.stage"),
        ("sweep: {seed: [1]}\noverrides: [train.max_steps: 5]\n", "overrides: .*write key=value"),
        ("sweep: {seed: [1]}\nwarmup_steps: few\n", "warmup_steps"),
        ("- 1\n", "not readable as a study"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(tmp_path: Path, more: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        make_points(load_study(written(tmp_path, more)), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["size=vits", "run=x", "data.shards=[x]", "data.validation=[x]", "stage=stage2"])
def test_what_the_study_sets_itself_cannot_be_overridden(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"a study sets it; give (study\.|--out)"):
        load_study(written(tmp_path), [text])


def test_a_key_that_is_swept_cannot_be_overridden(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sweeps over it"):
        load_study(written(tmp_path), ["train.zero_stage=1"])


def test_names_and_paths(tmp_path: Path) -> None:
    assert study_file("strong") == STUDIES / "strong.yaml"
    assert study_file(str(written(tmp_path))) == tmp_path / "study.yaml"
    with pytest.raises(UserError, match="did you mean 'strong'"):
        study_file("stron")
    with pytest.raises(UserError, match="no such file"):
        study_file("./strong.yaml")


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_that_come_with_the_project_are_whole(path: Path, tmp_path: Path) -> None:
    points = make_points(load_study(path), tmp_path)
    assert len(points) > 1
    for point in points:
        check_shares(point.config)
