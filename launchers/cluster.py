"""What is asked of a cluster: profiles from `configs/cluster/`, or from a file of the user's own.

Contract: what differs from site to site is said here, in names and in shell lines, and nowhere in code. A profile is
`default.yaml`, then its own file, then `cluster.KEY=VALUE`. Text of the shell is kept as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from pairvpr_dist.config import CONFIGS, merge, parse_override, to_dataclass
from pairvpr_dist.errors import UserError, nearest

PROFILES = CONFIGS / "cluster"
VARIABLE = re.compile(r"[A-Za-z_]\w*")
OPTION = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass
class ClusterProfile:
    """What each job of a run asks for, and what surrounds it."""

    partition: str | None  # none: SLURM's default
    account: str | None
    qos: str | None
    nodes: int
    gpus_per_node: int  # a process for each; 0: machines without GPUs
    tasks_per_node: int  # processes of a node without GPUs
    cpus_per_task: int  # CPUs of a process, its data workers among them
    memory_gb: float | None  # of a node; none: SLURM's default
    hours: float  # of one start; a run goes on in the next one
    constraint: str | None
    exclude: str | None  # nodes
    comment: str | None
    signal_seconds: int  # so long before its time is over a job is told to save and goes back into the queue
    requeue: bool  # whether SLURM may run a job again
    scratch: str | None  # folder on each node's own disk, for temporary files and caches; text of the shell
    array_at_once: int  # points of a sweep that run at a time
    environment: dict[str, str]  # variables, taken as they are written
    setup: list[str]  # shell lines before the processes start
    teardown: list[str]  # shell lines after they have ended
    sbatch: dict[str, Any]  # more options of sbatch; true for one without value
    srun: list[str]  # more options of srun
    overrides: list[str]  # key=value for the run; the command line goes before them
    gpu: str | None = None  # a name of configs/hardware.yaml, for the plan; of runs submitted before it was a key, none

    def __post_init__(self) -> None:
        for key in ("nodes", "tasks_per_node", "cpus_per_task", "hours", "signal_seconds", "array_at_once"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "must be positive")
        _require(self.gpus_per_node >= 0, "gpus_per_node", self.gpus_per_node, "must be 0 or more")
        _require(self.memory_gb is None or self.memory_gb > 0, "memory_gb", self.memory_gb, "must be positive, or null")
        _require(
            self.signal_seconds < self.hours * 3600, "signal_seconds", self.signal_seconds, "must be less than hours"
        )
        for name in self.environment:
            _require(bool(VARIABLE.fullmatch(name)), "environment", name, "is not a name of a variable")
        for name in self.sbatch:
            _require(bool(OPTION.fullmatch(name)), "sbatch", name, "is not an option; write it without its dashes")
        texts = {key: str(getattr(self, key)) for key in ("partition", "account", "qos", "constraint", "exclude",
                                                          "comment", "scratch")}  # fmt: skip
        for key, text in (texts | {f"sbatch.{name}": str(value) for name, value in self.sbatch.items()}).items():
            _require("\n" not in text, key, repr(text), "must be one line")

    @property
    def tasks_on_node(self) -> int:
        """Processes of a node."""
        return self.gpus_per_node or self.tasks_per_node

    @property
    def tasks(self) -> int:
        """Processes of a job."""
        return self.nodes * self.tasks_on_node


def load_profile(name: str, overrides: Sequence[str] = ()) -> ClusterProfile:
    """The profile `configs/cluster/NAME.yaml`, or of a path to YAML, after overrides (`key=value`). `UserError`."""
    default = PROFILES / "default.yaml"
    return profile_from([_values(default), _values(profile_file(name))], [str(default), name], overrides)


def profile_from(layers: Sequence[Any], origins: Sequence[str], overrides: Sequence[str]) -> ClusterProfile:
    """A profile from layers of values, each with where it was read, then `key=value`."""
    config = OmegaConf.structured(ClusterProfile)
    for values, origin in zip(layers, origins, strict=True):
        config = merge(config, OmegaConf.create(_literal(values)), origin)
    for override in overrides:
        values = OmegaConf.to_container(parse_override(override, ClusterProfile), resolve=False)
        config = merge(config, OmegaConf.create(_literal(values)), f"cluster.{override}")
    profile: ClusterProfile = to_dataclass(config, "cluster profile")
    return profile


def profile_file(name: str) -> Path:
    """The file of a profile: by name, or by path where it has a folder or an ending."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file; it should be a cluster profile")
        return Path(name)
    known = [path.stem for path in PROFILES.glob("*.yaml")]
    if name not in known:
        raise UserError(f"cluster '{name}' is unknown; {nearest(name, known)}; --cluster also takes a path to YAML")
    return PROFILES / f"{name}.yaml"


def _values(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path}: not readable as a cluster profile: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a cluster profile; write keys of configs/cluster/default.yaml")
    return values  # type: ignore[return-value]


def _literal(values: Any) -> Any:
    """The same values with ${...} left to the shell, which OmegaConf would look up itself."""
    if isinstance(values, dict):
        return {key: _literal(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_literal(value) for value in values]
    return values.replace("${", r"\${") if isinstance(values, str) else values


def _require(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise UserError(f"cluster.{key}={value}: {remedy}")
