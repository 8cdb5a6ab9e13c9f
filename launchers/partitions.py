"""What SLURM's partitions offer, and whether a job can ever start there.

Contract: only what SLURM itself says is held against a job; where it says nothing, nothing is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launchers.cluster import ClusterProfile
from launchers.slurm_queue import ask
from pairvpr_dist.errors import UserError, nearest

# Partition (the default one has a star), nodes, CPUs and MB of each, longest time, generic resources.
FORMAT = "%P|%D|%c|%m|%l|%G"
FACTORS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike."""

    partition: str
    is_default: bool
    count: int
    cpus: int
    memory_mb: int
    hours: float | None  # the partition's limit; none: no limit
    gpus: int

    def suit(self, profile: ClusterProfile) -> bool:
        """Whether each of them can run its part of a job."""
        return (
            self.gpus >= profile.gpus_per_node
            and self.cpus >= profile.tasks_on_node * profile.cpus_per_task
            and self.memory_mb >= (profile.memory_gb or 0) * 1024
        )

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPUs" if self.gpus else ""
        return f"{self.count} with {self.cpus} CPUs{gpus}, {self.memory_mb / 1024:.0f} GB"


def ask_partitions() -> list[Nodes]:
    """All partitions, as SLURM tells them now. Raises `SlurmError`."""
    return parse_partitions(ask(["sinfo", "-h", "-e", "-o", FORMAT]))


def parse_partitions(text: str) -> list[Nodes]:
    """The partitions in lines of `FORMAT`. Pure."""
    rows = [line.strip().split("|") for line in text.splitlines() if line.count("|") == 5]
    return [
        Nodes(name.removesuffix("*"), name.endswith("*"), number(count), number(cpus), number(memory), hours(limit),
              gpus(resources))
        for name, count, cpus, memory, limit, resources in rows
    ]  # fmt: skip


def number(text: str) -> int:
    """`96`, `96+` where nodes have 96 and more, or `1K` for 1024. Pure."""
    text = text.rstrip("+")
    factor = FACTORS.get(text[-1], 1)
    return round(float(text.rstrip("KMG")) * factor)


def hours(text: str) -> float | None:
    """`7-00:00:00`, `2:00:00` or `30:00` in hours; none for `infinite` and `n/a`. Pure."""
    told = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if told is None:
        return None
    days, of_day, minutes, seconds = (int(part or 0) for part in told.groups())
    return days * 24 + of_day + minutes / 60 + seconds / 3600


def gpus(text: str) -> int:
    """GPUs of a node in `gpu:h100:8(S:0-1),shard:32`. Pure."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", text))


def check_partition(profile: ClusterProfile, offered: Sequence[Nodes]) -> None:
    """Raises `UserError` where a job of the profile could never start. Pure."""
    names = sorted({nodes.partition for nodes in offered})
    asked = profile.partition.split(",") if profile.partition is not None else defaults(offered)
    for name in asked:
        if name not in names:
            raise UserError(f"cluster.partition={name}: SLURM has none of that name; {nearest(name, names)}")
    if not asked:
        raise UserError(f"cluster.partition: none given, and SLURM has no default; known: {', '.join(names)}")
    faults = [fault(profile, name, [nodes for nodes in offered if nodes.partition == name]) for name in asked]
    if all(faults):  # SLURM takes whichever of them is free first
        raise UserError(str(faults[0]))


def defaults(offered: Sequence[Nodes]) -> list[str]:
    """The partition of jobs that name none; SLURM may have no such one. Pure."""
    return sorted({nodes.partition for nodes in offered if nodes.is_default})


def fault(profile: ClusterProfile, name: str, its: Sequence[Nodes]) -> str | None:
    """Why a job of the profile can never start in a partition of these nodes; none where it can. Pure."""
    limit = its[0].hours
    if limit is not None and profile.hours > limit:
        return (f"cluster.hours={profile.hours:g}: partition {name} ends jobs after {limit:g}; "
                "a run goes on in the next one, so ask for less")  # fmt: skip
    if sum(nodes.count for nodes in its if nodes.suit(profile)) >= profile.nodes:
        return None
    asked = f"{profile.nodes} nodes with {profile.tasks_on_node * profile.cpus_per_task} CPUs"
    asked += f", {profile.gpus_per_node} GPUs" if profile.gpus_per_node else ""
    asked += f", {profile.memory_gb:g} GB" if profile.memory_gb else ""
    have = "; ".join(map(str, its))
    return (f"cluster.nodes={profile.nodes}: {asked} are asked for, and partition {name} has {have}; "
            "ask for less or name another cluster.partition")  # fmt: skip
