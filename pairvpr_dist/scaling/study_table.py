"""The table of a study: a row a point, with what was measured, what was predicted, and what follows from other rows.

Contract: `measured.jsonl` keeps a line of every point that was ever tried in the folder, the newest last, and is only
appended to. `table.jsonl` and `table.csv` are what it says of the points of now, in their order, with what follows from
other rows (efficiency, predictions from a calibrated processor); both are whole or not there.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pairvpr_dist.costs.hardware import Gpu, find_gpu
from pairvpr_dist.costs.memory import process_memory
from pairvpr_dist.files import append_json_line, read_json_lines, write_text
from pairvpr_dist.scaling.simulation import StepAssumptions, StepTime, simulate_step
from pairvpr_dist.scaling.study import Point, Study
from pairvpr_dist.scaling.study_machine import as_gpu, calibrate
from pairvpr_dist.settings import TrainingConfig

Row = dict[str, Any]

MEASURED = "measured.jsonl"
GIB = 2**30
RANKS, BATCH = "launch.processes", "data.places_per_batch"
# Of all others the lower median, so that rates and seconds are of one and the same round.
OVER_ROUNDS: dict[str, Callable[[Iterable[float]], float]] = {
    "places_per_second_low": min, "places_per_second_high": max, "seconds_per_step": statistics.median_high,
}  # fmt: skip
SHOWN = {  # of a row, in the order of the text table: heading and form
    "places_per_second": ("places/s", ",.3g"),
    "seconds_per_step": ("s/step", ".3g"),
    "predicted_seconds_per_step": ("predicted", ".3g"),
    "efficiency": ("efficiency", ".0%"),
    "mfu": ("MFU", ".1%"),
    "memory_gib": ("GiB", ".3f"),
    "predicted_memory_gib": ("predicted", ".3f"),
    "compute": ("FLOPs", ".2e"),
    "loss": ("loss", ".4f"),
    "error": ("", ""),
}


def read_rows(folder: Path, points: Sequence[Point], keys: Sequence[str]) -> list[Row]:
    """What was measured of these points, in their order; a point that was not tried has no row."""
    newest = {row["digest"]: row for row in read_json_lines(folder / MEASURED)}
    return [row_of(point, newest[point.digest], keys) for point in points if point.digest in newest]


def over_rounds(rows: Sequence[Row], points: Sequence[Point]) -> list[Row]:
    """A row for each setting of the points: the first of it, with the median of each figure over its rounds. Pure.

    Quartiles become the lowest and highest of all rounds. Rounds that failed count where all have.
    """
    first = {point.setting: point.digest for point in reversed(points)}
    setting = {point.digest: point.setting for point in points}
    groups: dict[str, list[Row]] = {key: [] for key in reversed(first)}
    for row in rows:
        groups[setting[row["digest"]]].append(row)
    found = []
    for key, group in groups.items():
        measured = [row for row in group if "error" not in row] or group[:1]
        for row in measured[:1]:
            figures = {name: OVER_ROUNDS.get(name, statistics.median_low)(other[name] for other in measured)
                       for name, value in row.items() if isinstance(value, float)}  # fmt: skip
            found.append({**row, **figures, "rounds": len(measured), "digest": first[key]})
    return found


def add_row(folder: Path, row: Row) -> None:
    """Keep what was measured of a point."""
    append_json_line(folder / MEASURED, row)


def write_table(folder: Path, rows: Sequence[Row]) -> None:
    """table.jsonl and table.csv."""
    write_text(folder / "table.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    columns = list({key: None for row in rows for key in row})
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(folder / "table.csv", text.getvalue())


def row_of(point: Point, told: Mapping[str, Any], keys: Sequence[str]) -> Row:
    """The row of a point that measured `told`, or of which it is told why it failed, with its values of `keys`.

    `told` may be an older row of it, from before the study differed in some of them. Pure.
    """
    config = point.config
    shape = {
        "size": point.size, RANKS: config.launch.processes, BATCH: config.data.places_per_batch,
        "train.zero_stage": config.train.zero_stage,
    }  # fmt: skip
    known = {"point": point.name, **{key: point.value_of(key) for key in keys}, **shape}
    return {**known, **{key: value for key, value in told.items() if key not in known}, "digest": point.digest}


def with_efficiency(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """The rows with places/s for each process as a share of that on the fewest processes. Pure.

    Of rows that differ in processes alone (strong scaling) or else in processes and batch, with the same batch for each
    process (weak scaling). `keys`: what the study sweeps over.
    """
    found = []
    for row in rows:
        others = _scaled(row, rows, keys) if "places_per_second" in row else []
        row = {key: value for key, value in row.items() if key not in ("efficiency", "scaling")}
        if len({other[RANKS] for other in others}) > 1:
            first = min(others, key=lambda other: other[RANKS])
            row["scaling"] = "strong" if first[BATCH] == others[-1][BATCH] else "weak"
            row["efficiency"] = _rate_of_rank(row) / _rate_of_rank(first)
        found.append(row)
    return found


def _scaled(row: Row, rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """The rows of which this one tells how it scales, itself among them; strong scaling goes before weak."""
    measured = [other for other in rows if "places_per_second" in other]
    for free, same in (([RANKS], ()), ([RANKS, BATCH], (_share,))):
        fixed = [key for key in keys if key not in free]
        alike = [
            other
            for other in measured
            if all(other.get(key) == row.get(key) for key in fixed) and all(of(other) == of(row) for of in same)
            and (BATCH in free or other[BATCH] == row[BATCH])
        ]  # fmt: skip
        if len({other[RANKS] for other in alike}) > 1:
            return alike
    return []


def _share(row: Row) -> float:
    return float(row[BATCH] / row[RANKS])


def _rate_of_rank(row: Row) -> float:
    return float(row["places_per_second"] / row[RANKS])


def with_predictions(
    rows: Sequence[Row], points: Mapping[str, Point], study: Study, rates: dict[str, float] | None
) -> list[Row]:
    """The rows with predicted seconds of a step and memory of a process.

    On the study's GPU; without one on this machine's processor of `rates`, calibrated by the first row of one process,
    whose `calibrates` is then true. Without such a row, or without rates, nothing is predicted.
    """
    if study.gpu is not None:
        gpu = find_gpu(study.gpu)
        return [{**row, **_predicted(points[row["digest"]], gpu, on_gpu=True), "calibrates": False} for row in rows]
    reference = next((row for row in rows if row[RANKS] == 1 and "seconds_per_step" in row), None)
    if rates is None:
        return list(rows)
    if reference is None:
        return [{**row, **_own_mfu(row, rates)} for row in rows]
    config = points[reference["digest"]].config
    gpu = calibrate(as_gpu(rates), reference["seconds_per_step"], lambda g: _simulated(config, g, on_gpu=False).seconds)
    return [
        {**row, **_predicted(points[row["digest"]], gpu, on_gpu=False), **_own_mfu(row, rates),
         "calibrates": row is reference}
        for row in rows
    ]  # fmt: skip


def _predicted(point: Point, gpu: Gpu, on_gpu: bool) -> Row:
    step = _simulated(point.config, gpu, on_gpu)
    memory = process_memory(_on_device(point.config, on_gpu), _bf16(point.config, on_gpu), overlap=on_gpu)
    return {
        "predicted_seconds_per_step": step.seconds,
        "predicted_binds": step.binds,
        "predicted_memory_gib": memory.total / GIB,
    }


def _simulated(config: TrainingConfig, gpu: Gpu, on_gpu: bool) -> StepTime:
    """On a CPU nothing is overlapped, and starting a kernel is a call of a function."""
    of_cpu = StepAssumptions(overlap=False, kernel_seconds=0.0, jitter=0.0)
    return simulate_step(_on_device(config, on_gpu), gpu, _bf16(config, on_gpu), None if on_gpu else of_cpu)


def _on_device(config: TrainingConfig, on_gpu: bool) -> TrainingConfig:
    """`train.compile=auto` is none on a CPU."""
    compiles = config.train.compile
    return replace(
        config, train=replace(config.train, compile="none" if compiles == "auto" and not on_gpu else compiles)
    )


def _bf16(config: TrainingConfig, on_gpu: bool) -> bool:
    return config.train.precision == "bf16" or (on_gpu and config.train.precision == "auto")


def _own_mfu(row: Row, rates: dict[str, float]) -> Row:
    """No data sheet tells a processor's peak: of the products of matrices that were measured here."""
    return {"mfu": row["flops_per_second"] / (rates["flops"] * row[RANKS])} if "flops_per_second" in row else {}


def text_table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """The rows for people: what they differ in, and what was measured."""
    shown = [key for key in SHOWN if any(row.get(key) is not None for row in rows)]
    heads = [*(key.rpartition(".")[2] for key in keys), *(SHOWN[key][0] for key in shown)]
    lines = [heads]
    for row in rows:
        figures = [format(row[key], SHOWN[key][1]) if row.get(key) is not None else "-" * bool(SHOWN[key][0])
                   for key in shown]  # fmt: skip
        lines.append([*(str(row.get(key)) for key in keys), *figures])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
