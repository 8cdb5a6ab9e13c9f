"""Which jobs a command stands for: configurations, profiles and run folders.

Contract: nothing is written and SLURM is not asked. All runs of a plan have the same stages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

from launchers.cluster import ClusterProfile, load_profile, profile_from
from launchers.data_sets import quoted
from launchers.job_script import StageJob
from launchers.jobs import PIPELINE, check_stage_name, jobs
from launchers.run_jobs import FILE
from pairvpr_dist.config import has_key
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import EvalRunConfig

CLUSTER_KEY = re.compile(r"(?:(stage1|stage2|eval)\.)?cluster\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """What a user asks for, as on the command line."""

    stage: str  # or pipeline
    size: str
    overrides: tuple[str, ...] = ()  # key=value of the run and of its cluster
    cluster: str = "default"
    sweep: tuple[tuple[str, ...], ...] = ()  # for each --array its key=value
    command: tuple[str, ...] = ()  # as it was typed
    profiles: Mapping[str, ClusterProfile] = field(default_factory=dict)  # by stage, in place of `cluster`; of a
    # resumed run, whose overrides hold what its profile says of the run


@dataclass(frozen=True)
class Point:
    """One run: a point of a sweep, or all there is."""

    overrides: tuple[str, ...]  # of the run, those of the profile first
    stages: list[StageJob]

    @property
    def run(self) -> Path:
        """Its run folder."""
        return Path(self.stages[0].config.run)


@dataclass(frozen=True)
class Plan:
    """The runs of a request. All have the same stages."""

    request: Request
    base: Path  # where code and logs lie: the run folder, or the folder of a sweep's runs
    points: list[Point]

    @property
    def stages(self) -> list[list[StageJob]]:
        """The jobs of each stage, one for every point."""
        return [list(stage) for stage in zip(*(point.stages for point in self.points), strict=True)]

    @property
    def stages_left(self) -> list[list[StageJob]]:
        """Those that have not ended at every point: what is submitted."""
        return [stage for stage in self.stages if not all(map(has_ended, stage))]


def make_plan(request: Request, open_keys: Sequence[str] = ()) -> Plan:
    """The configurations and profiles of a request. `open_keys`: overrides that any other comes before. `UserError`."""
    check_stage_name(request.stage)
    given, of_cluster = split_cluster_keys(request.overrides)
    if own := [text for text in given if text.partition("=")[0].endswith("launch.processes")]:
        raise UserError(f"{own[0]}: a job has a process for each GPU or task of the cluster profile; "
                        "give cluster.nodes=... or cluster.gpus_per_node=...")  # fmt: skip
    if not request.profiles:
        given = [*known_to(request.stage, load_profile(request.cluster, of_cluster[""]).overrides), *given]
    first = [*open_keys, *given]
    if not request.sweep:
        points = [Point(tuple(given), stage_jobs(request, first, of_cluster))]
        return Plan(request, points[0].run, points)
    base = Path(jobs(request.stage, request.size, first)[0].run)
    points = []
    for values in product(*request.sweep):
        run = f"run={quoted(str(base / point_name(values)))}"
        points.append(Point((*given, *values, run), stage_jobs(request, [*first, *values, run], of_cluster)))
    if len({point.run for point in points}) < len(points):
        raise UserError("--array: two points would have the same run folder; give each value once")
    return Plan(request, base, points)


def stage_jobs(request: Request, overrides: Sequence[str], of_cluster: Mapping[str, list[str]]) -> list[StageJob]:
    """The jobs of one run: each configuration with its profile and the number of its processes."""
    found = []
    for config in jobs(request.stage, request.size, overrides):
        asked = [*of_cluster[""], *of_cluster[config.stage]]
        recorded = request.profiles.get(config.stage)
        profile = profile_from([asdict(recorded)], [FILE], asked) if recorded else load_profile(request.cluster, asked)
        found.append(StageJob(replace(config, launch=replace(config.launch, processes=profile.tasks)), profile))
    return found


def split_cluster_keys(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of the run, and those of the cluster by stage; `` has those of all stages. Pure."""
    own: list[str] = []
    of_cluster: dict[str, list[str]] = {name: [] for name in ("", *PIPELINE)}
    for text in overrides:
        told = CLUSTER_KEY.fullmatch(text)
        if told:
            of_cluster[told[1] or ""].append(told[2])
        else:
            own.append(text)
    return own, of_cluster


def known_to(stage: str, overrides: Sequence[str]) -> list[str]:
    """Of a profile's overrides, without those of other stages. Pure."""
    keys = {text: text.partition("=")[0] for text in overrides}
    return [
        text
        for text, key in keys.items()
        if stage == "pipeline" or has_key(stage, key) or not any(has_key(name, key) for name in PIPELINE)
    ]


def sweep_values(text: str) -> tuple[str, ...]:
    """`key=1,2` as ("key=1", "key=2"); commas inside of brackets part nothing. Pure. Raises `UserError`."""
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise UserError(f"--array {text}: write key=v1,v2")
    pieces = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", values)
    return tuple(f"{key}={piece}" for piece in pieces)


def point_name(values: Sequence[str]) -> str:
    """The folder of a sweep's point: its key=value, in letters that any disk takes. Pure."""
    return re.sub(r"[^\w.,=+@-]", "_", ",".join(values))


def has_ended(job: StageJob) -> bool:
    """Whether a stage has left its result."""
    result = "results.json" if isinstance(job.config, EvalRunConfig) else "export/config.json"
    return (job.folder / result).exists()
