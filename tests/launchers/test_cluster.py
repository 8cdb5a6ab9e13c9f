"""Cluster profiles: layers, text of the shell, and what is refused at the door."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.cluster import PROFILES, load_profile
from pairvpr_dist.errors import UserError


def own(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", [path.stem for path in PROFILES.glob("*.yaml")])
def test_every_profile_that_comes_along_is_good(name: str) -> None:
    profile = load_profile(name)
    assert profile.tasks == profile.nodes * profile.tasks_on_node


def test_a_profile_is_a_thin_delta_and_keys_can_be_given(tmp_path: Path) -> None:
    mine = own(tmp_path, "partition: gpu\nnodes: 3\nenvironment: {A: '1'}\n")
    profile = load_profile(mine, ["nodes=4", "environment.B=2", "setup=[module load gcc]", "sbatch.exclusive=true"])
    assert (profile.partition, profile.nodes, profile.hours) == ("gpu", 4, load_profile("default").hours)
    assert profile.environment == {"A": "1", "B": "2"}
    assert profile.setup == ["module load gcc"]
    assert profile.sbatch == {"exclusive": True}


def test_processes_are_one_a_gpu_and_else_as_many_as_are_asked_for() -> None:
    assert load_profile("default", ["nodes=2", "gpus_per_node=8"]).tasks == 16
    assert load_profile("default", ["nodes=2", "gpus_per_node=0", "tasks_per_node=3"]).tasks == 6


def test_text_of_the_shell_stays_as_it_is_written(tmp_path: Path) -> None:
    mine = own(tmp_path, "scratch: ${SLURM_TMPDIR:-/tmp}\nsetup: ['x=${A} y=$B']\n")
    profile = load_profile(mine, ["teardown=['rm -r ${C}']"])
    assert profile.scratch == "${SLURM_TMPDIR:-/tmp}"
    assert profile.setup == ["x=${A} y=$B"]
    assert profile.teardown == ["rm -r ${C}"]


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("partitoin: gpu", [], "mine.yaml: unknown key 'partitoin'; did you mean 'partition'?"),
        ("nodes: many", [], "nodes"),
        ("[1, 2]", [], "mine.yaml: not a cluster profile"),
        ("nodes: [", [], "mine.yaml: not readable as a cluster profile"),
        ("", ["nods=1"], "cluster.nods=1: unknown key 'nods'; did you mean 'nodes'?"),
        ("", ["nodes=0"], "cluster.nodes=0: must be positive"),
        ("", ["gpus_per_node=-1"], "cluster.gpus_per_node=-1"),
        ("", ["hours=0.05"], "cluster.signal_seconds=300: must be less than hours"),
        ("", ["environment.1A=x"], "cluster.environment=1A"),
        ("", ["sbatch.--wckey=x"], "cluster.sbatch=--wckey: is not an option"),
        ('comment: "a\\n#SBATCH --uid=0"', [], "cluster.comment="),
        ("sbatch: {wckey: \"a\\nb\"}", [], "cluster.sbatch.wckey="),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(tmp_path: Path, text: str, overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_profile(own(tmp_path, text), overrides)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'h100x8'"):
        load_profile("h100x9")
    with pytest.raises(UserError, match="no such file"):
        load_profile(str(tmp_path / "gone.yaml"))
