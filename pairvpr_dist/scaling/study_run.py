"""A study from its file to its table and plots.

Contract: points that are in the table are not run again, unless they failed and it is asked for; a study that was
stopped or killed goes on by the same command. What a point measured is kept as soon as it has ended. Points that
wait or run under SLURM are left to it: what has ended is read, what no job will run any more is run again.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json, sole_owner, write_json
from pairvpr_dist.scaling.study import (
    VALIDATION_SEED,
    Point,
    Study,
    data_folders,
    load_study,
    make_points,
    study_file,
    swept_keys,
)
from pairvpr_dist.scaling.study_figures import Drawn
from pairvpr_dist.scaling.study_machine import library_memory, measure_machine
from pairvpr_dist.scaling.study_plots import draw_all
from pairvpr_dist.scaling.study_points import GIB, PointError, drop_weights, read_point, run_point
from pairvpr_dist.scaling.study_table import (
    Row,
    add_row,
    over_rounds,
    read_rows,
    row_of,
    text_table,
    with_efficiency,
    with_predictions,
    write_table,
)

log = logging.getLogger(__name__)

ACCELERATOR = "DS_ACCELERATOR"
MACHINE = "machine.json"
SUBMITTED = "jobs.jsonl"  # in a run's folder that launchers/slurm.py knows


@dataclass
class StudyRun:
    """A study at work in its folder."""

    study: Study
    folder: Path
    points: list[Point]

    @property
    def keys(self) -> list[str]:
        """What its points differ in."""
        return swept_keys(self.study)


def run_study(name: str, out: Path, overrides: Sequence[str], cluster: str | None = None, retry: bool = False) -> None:
    """Run the study `name`, a file or a name below configs/study, into `out`/NAME, and print its table.

    `cluster`: submit the points to SLURM with this profile in place of running them here. `retry`: try points again
    that failed. Raises `UserError`.
    """
    path = study_file(name)
    folder = (out / path.stem).absolute()
    study = load_study(path, overrides)
    points = make_points(study, folder)
    check_points(points)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_owner(folder / "lock", "wait for it, or name another folder with --out"):
        build_data(study, folder)
        run = StudyRun(study, folder, points)
        left = collect(run, retry)
        if cluster is None:
            run_here(run, left)
        else:
            submit(run, left, cluster)
        rows, waiting = finish(run)
    print(f"{study.title}\n{text_table(rows, run.keys)}")
    print(f"written: {folder / 'table.csv'}, table.jsonl and plots/")
    if waiting:
        print(f"{waiting} of {len(points)} points have not ended; the same command reads what has ended by then")


def check_points(points: Sequence[Point]) -> None:
    """That every batch can be dealt out over its processes. Raises `UserError`."""
    if not torch.cuda.is_available():
        os.environ.setdefault(ACCELERATOR, "cpu")  # else DeepSpeed, which comes with this, warns of its guess
    from pairvpr_dist.training.run_folder import check_shares

    for point in points:
        check_shares(point.config)


def build_data(study: Study, folder: Path) -> None:
    """Render the cities of a study, those that are not there yet."""
    if study.synthetic is None:
        return
    city = study.synthetic
    own, held_out = data_folders(study, folder)
    for where, places, seed in [
        *((where, city.places, 0) for where in own),
        *((where, city.validation_places, VALIDATION_SEED) for where in held_out),
    ]:
        if Path(where).exists():
            continue
        command = [sys.executable, "-m", "shards.build", "synthetic", "--places", str(places), "--views",
                   str(city.views), "--size", str(city.size), "--seed", str(seed), "--out", where]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            told = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise UserError(f"{where}: the synthetic city was not built: {told[-1].removeprefix('error: ')}")


def measure_once(run: StudyRun) -> None:
    """Measure this machine's processor, unless the study has with as many threads and ranks, or runs on GPUs."""
    if run.study.gpu is not None or torch.cuda.is_available():
        return
    launches = [point.config.launch for point in run.points]
    share = max(1, (os.cpu_count() or 1) // launches[0].processes)  # as the launcher shares the cores out
    threads, ranks = launches[0].threads or share, max(launch.processes for launch in launches)
    known = machine_rates(run) or {}
    if (known.get("threads"), known.get("ranks")) != (threads, ranks):
        rates = {"ranks": float(ranks), **measure_machine(threads, ranks), "library_memory": float(library_memory())}
        write_json(run.folder / MACHINE, rates)


def machine_rates(run: StudyRun) -> dict[str, float] | None:
    """What was measured of this machine's processor; None where predictions are of a GPU, or nothing ran here."""
    file = run.folder / MACHINE
    return read_json(file, "what a study has measured of this machine") if file.exists() else None


def collect(run: StudyRun, retry: bool) -> list[Point]:
    """Read what has ended under SLURM, and give the points that are still to be run."""
    done = {row["digest"] for row in read_rows(run.folder, run.points, run.keys) if not (retry and "error" in row)}
    open_points = [point for point in run.points if point.digest not in done]
    states, left = _submitted_states(open_points), []
    for point in open_points:
        state = states.get(point.config.run)
        if state is None or state["lost"] or (state["failed"] and retry):
            left.append(point)
        elif state["ended"] or state["failed"]:
            add_row(run.folder, row_of(point, _told(point, run.study, state), run.keys))
            drop_weights(point)
    return left


def _told(point: Point, study: Study, state: dict[str, Any]) -> dict[str, Any]:
    if state["failed"]:
        return {"error": state["failed"]}
    try:
        return read_point(point, study)
    except PointError as error:
        return {"error": str(error)}


def _submitted_states(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """How the points stand that were submitted, by run folder: ended, failed (why) or lost (no job will run them)."""
    runs = [point.config.run for point in points if (Path(point.config.run) / SUBMITTED).exists()]
    return json.loads(_launcher("states", json.dumps(runs))) if runs else {}


def run_here(run: StudyRun, points: Sequence[Point]) -> None:
    """Run points one after another; a bar on a terminal, else a line a point."""
    if points:
        measure_once(run)
    rates = machine_rates(run)
    started = time.monotonic()
    bar = tqdm(points, unit="point", disable=not sys.stderr.isatty(), total=len(run.points),
               initial=len(run.points) - len(points))  # fmt: skip
    for done, point in enumerate(bar, 1):
        bar.set_description(point.name.rpartition("-")[0])
        row = row_of(point, _run(point, run.study, rates), run.keys)
        add_row(run.folder, row)
        drop_weights(point)
        seconds = (time.monotonic() - started) / done * (len(points) - done)
        if bar.disable:
            told = row.get("error") or f"{row['seconds_per_step']:.3g} s/step"
            log.info("%d of %d, %s: %s, ETA %s", done, len(points), point.name, told, timedelta(seconds=round(seconds)))


def _run(point: Point, study: Study, rates: dict[str, float] | None) -> dict[str, Any]:
    try:
        measured = run_point(point, study)
    except PointError as error:
        return {"error": str(error)}
    if rates and "memory_gib" in measured:
        measured["memory_gib"] -= rates["library_memory"] / GIB
    return measured


def submit(run: StudyRun, points: Sequence[Point], cluster: str) -> None:
    """Submit points to SLURM: those of equal size and ranks as one array."""
    if not points:
        return
    asked = [
        {"stage": p.config.stage, "size": p.size, "processes": p.config.launch.processes,
         "overrides": [text for text in p.overrides if not text.startswith("launch.processes=")], "run": p.config.run}
        for p in points
    ]  # fmt: skip
    file = run.folder / "submitted.json"
    write_json(file, asked)
    print(_launcher("submit", str(file), str(run.folder), cluster), end="")


def _launcher(*arguments: str) -> str:
    """What launchers/study_jobs.py prints. Raises its mistakes as `UserError`."""
    environment = {name: value for name, value in os.environ.items() if name != ACCELERATOR}  # jobs may have GPUs
    done = subprocess.run([sys.executable, "-m", "launchers.study_jobs", *arguments], env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise UserError(told[-1].removeprefix("error: ") if told else done.stderr)
    return done.stdout


def finish(run: StudyRun) -> tuple[list[Row], int]:
    """Write the table of what is there, and draw the plots; its rows, and how many points have not ended."""
    rates = machine_rates(run)
    measured = read_rows(run.folder, run.points, run.keys)
    rows = with_efficiency(over_rounds(measured, run.points), run.keys)
    rows = with_predictions(rows, {point.digest: point for point in run.points}, run.study, rates)
    write_table(run.folder, rows)
    draw_all(run.folder / "plots", Drawn(run.study, rows, run.keys, rates))
    return rows, len(run.points) - len(measured)
