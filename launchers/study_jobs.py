"""The points of a study as jobs of SLURM; called by `pairvpr study`, which knows no SLURM.

Contract: points of one size and one number of processes are one job array. Nothing of them is changed but what the
cluster's profile says of every run; each point has its own run folder, which the verbs of launchers/slurm.py take.

    python -m launchers.study_jobs submit FILE FOLDER CLUSTER     FILE: [{stage, size, processes, overrides, run}, ...]
    python -m launchers.study_jobs states '["RUN", ...]'          prints {RUN: {ended, failed, lost}}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launchers.cluster import ClusterProfile, load_profile
from launchers.planning import Plan, Point, Request, known_to, stage_jobs
from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.files import read_json


def plans(asked: Sequence[dict[str, Any]], folder: Path, cluster: str) -> list[Plan]:
    """A plan for each size and number of processes. Raises `UserError`."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for point in asked:
        groups.setdefault((point["stage"], point["size"], point["processes"]), []).append(point)
    found = []
    for (stage, size, processes), points in groups.items():
        profile = load_profile(cluster)
        shape = [f"cluster.{text}" for text in machines(profile, processes)]
        request = Request(stage, size, (), cluster, command=("pairvpr", "study"))
        general = known_to(stage, profile.overrides)
        made = []
        for point in points:
            overrides = [*general, *point["overrides"]]
            jobs = stage_jobs(request, overrides, {"": [text.removeprefix("cluster.") for text in shape], stage: []})
            made.append(Point((*overrides, *shape), jobs))
        base = made[0].run if len(made) == 1 else folder / "jobs" / f"{stage}-{size}-{processes}"
        found.append(Plan(request, base, made))
    return found


def machines(profile: ClusterProfile, processes: int) -> list[str]:
    """Keys of a profile that give so many processes: on one machine where it has that many, else on several. Pure.

    Raises `UserError` where machines would be in part unused.
    """
    on_node = "gpus_per_node" if profile.gpus_per_node else "tasks_per_node"
    if processes <= profile.tasks_on_node:
        return ["nodes=1", f"{on_node}={processes}"]
    if processes % profile.tasks_on_node:
        raise UserError(f"launch.processes={processes}: the cluster's machines run {profile.tasks_on_node} each; "
                        f"sweep over multiples, or another --cluster")  # fmt: skip
    return [f"nodes={processes // profile.tasks_on_node}"]


def submit_points(asked: Sequence[dict[str, Any]], folder: Path, cluster: str) -> list[str]:
    """Submit points; what is told of each array. Raises `UserError`, for what cannot work before any is submitted."""
    from launchers.admission import admit
    from launchers.submission import submit, told

    found = plans(asked, folder, cluster)
    for plan in found:
        admit(plan)
    return [told(submit(plan)) for plan in found]


def states(runs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each run that was submitted whether it has ended, why it failed, and whether no job will end it."""
    from launchers.run_jobs import queue_of, read_jobs
    from launchers.status_table import stage_status

    jobs = {run: read_jobs(Path(run))[-1] for run in runs}
    known = {job.job_id: answer for job, answer in queue_of(list(jobs.values()))}
    found = {}
    for run, job in jobs.items():
        told = stage_status(job, known).told
        ended = (job.run / job.stage / "export/config.json").exists()
        waits = job.job_id in known and known[job.job_id].in_queue
        failed = told.removeprefix("failed").strip(" ()") if told.startswith("failed") else None
        failed = None if ended or waits else failed
        found[run] = {"ended": ended and not waits, "failed": failed, "lost": not (ended or waits or failed)}
    return found


def main(argv: Sequence[str]) -> None:
    """The program."""
    match argv:
        case ["-h" | "--help"]:
            print(__doc__)
        case ["submit", file, folder, cluster]:
            print("\n".join(submit_points(read_json(Path(file), "the points of a study"), Path(folder), cluster)))
        case ["states", runs]:
            print(json.dumps(states(json.loads(runs))))
        case _:
            raise UserError("usage: python -m launchers.study_jobs submit FILE FOLDER CLUSTER, or states RUNS")


if __name__ == "__main__":
    exit_on_user_error(lambda: main(sys.argv[1:]))
