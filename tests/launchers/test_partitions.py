"""What sinfo prints, and jobs that could never start."""

from __future__ import annotations

import pytest

from launchers.cluster import load_profile
from launchers.partitions import check_partition, gpus, hours, number, parse_partitions
from pairvpr_dist.errors import UserError

# As SLURM prints it with partitions.FORMAT.
TOLD = """\
gpu*|6|128|1031000|2-00:00:00|gpu:h100:8(S:0-1)
gpu*|2|64|515000|2-00:00:00|gpu:a100:4(S:0-1),shard:16
cpu|40|48+|190000+|infinite|(null)
debug|1|48|190000|30:00|(null)
"""
OFFERED = parse_partitions(TOLD)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2-00:00:00", 48), ("1-12:30:00", 36.5), ("4:00:00", 4), ("30:00", 0.5), ("infinite", None), ("n/a", None)],
)
def test_times(text: str, value: float | None) -> None:
    assert hours(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("(null)", 0), ("gpu:8", 8), ("gpu:h100:8(S:0-1)", 8), ("gpu:a:2,gpu:b:2", 4), ("craynetwork:4,gpu:4", 4)],
)
def test_gpus_of_a_node(text: str, value: int) -> None:
    assert gpus(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("96", 96), ("96+", 96), ("1K", 1024), ("1.5K+", 1536), ("2M", 2 << 20), ("0", 0)]
)
def test_numbers(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "asked",
    [
        ["partition=debug,gpu", "hours=24"],  # one of them fits
        ["partition=gpu", "nodes=6", "gpus_per_node=8"],
        ["nodes=8", "gpus_per_node=4"],  # the default partition, both kinds of nodes
        ["partition=cpu", "gpus_per_node=0", "nodes=40", "hours=1000"],
        ["partition=debug", "gpus_per_node=0", "hours=0.5", "signal_seconds=60"],
    ],
)
def test_what_can_start_passes(asked: list[str]) -> None:
    check_partition(load_profile("default", asked), OFFERED)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["partition=gpus"], "cluster.partition=gpus: SLURM has none of that name; did you mean 'gpu'?"),
        (["nodes=7", "gpus_per_node=8"], "partition gpu has 6 with 128 CPUs, 8 GPUs, 1007 GB; 2 with 64 CPUs, 4 GPUs"),
        (["nodes=9", "gpus_per_node=1"], "cluster.nodes=9"),
        (["gpus_per_node=16"], "16 GPUs are asked for"),
        (["cpus_per_task=40", "gpus_per_node=4"], "160 CPUs"),
        (["memory_gb=1100"], "1100 GB"),
        (["partition=cpu"], "4 GPUs are asked for, and partition cpu"),
        (["hours=49"], "cluster.hours=49: partition gpu ends jobs after 48"),
        (["partition=gpu,gpus"], "cluster.partition=gpus: SLURM has none of that name"),
        (["partition=debug,cpu"], "cluster.hours=24: partition debug ends jobs after 0.5"),
        (["partition=debug", "gpus_per_node=0"], "partition debug ends jobs after 0.5"),
    ],
)
def test_what_never_could_is_refused(asked: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        check_partition(load_profile("default", asked), OFFERED)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_a_default_a_partition_must_be_named() -> None:
    with pytest.raises(UserError, match=r"none given, and SLURM has no default; known: cpu, debug, gpu"):
        check_partition(load_profile("default"), parse_partitions(TOLD.replace("*", "")))
