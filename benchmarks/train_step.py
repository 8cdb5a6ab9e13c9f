"""Training steps of both stages, ours against a straightforward one, in one run.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --sizes vitg --stages stage1 --micro-batch 64 train.zero_stage=0
    python benchmarks/train_step.py --sizes vitb --stages stage1 --profile trace.json

Contract: *straightforward* is `plain_step.py`; the others are the `Engine` of a run on one process, the batch on the
device already: *ours* as the configuration has it, the others with one key changed. All learn from the same random
images with the same random weights, and all but `drop_hidden` compute the same. Rounds take turns between two processes
(`step_worker.py`); medians are told, of the ratio the range too, with the share of the device's limit, which is a large
matrix product in the precision of ours. MFU is told on a GPU whose peak is known. A pair is what the decoder sees: one
a place in stage 1, two an image in stage 2.

A CPU makes few steps of few places, of stage 2 at 112 px, because ViT-B at 322 px would take minutes; where others use
the machine the ratio of processor time says more than that of wall time. `key=value` changes the configuration of all.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from step_worker import Turn, Worker
from tqdm import tqdm

from launchers.processes import set_environment
from pairvpr_dist.config import load_config
from pairvpr_dist.costs.flops import training_flops_per_place
from pairvpr_dist.costs.memory import process_memory
from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.files import write_json
from pairvpr_dist.settings import Stage1Config, TrainingConfig
from pairvpr_dist.training.deepspeed_config import compiled_blocks
from pairvpr_dist.training.usage import own_peak_flops

PLAIN, OURS, DROPPED = "straightforward", "ours", "drop_hidden"
SIZES = {"cpu": "tiny,vits,vitb", "cuda": "vits,vitb,vitl,vitg"}
PLACES = {  # in the first batch that is tried
    "cpu": {"tiny": 48, "stage1": 2, "stage2": 2},
    "cuda": {"tiny": 512, "stage1": 128, "stage2": 32},
}
CPU_STAGE2_PIXELS = 112
STEPS = {"cpu": 1, "cuda": 5}  # in a turn
WARM_UP = {"cpu": 1, "cuda": 3}
COMPILED = {"cpu": ("blocks",), "cuda": ("none", "blocks", "graphs")}
GIB, GIGA, TERA = 2**30, 1e9, 1e12


class Row(NamedTuple):
    """What was measured of one form."""

    form: str
    config: TrainingConfig
    turns: list[Turn] | None  # None: it does not fit
    beside: list[Turn]  # the straightforward step in the same rounds


def main() -> None:
    """The program."""
    args = _parse()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if kind == "cuda" else f"{torch.get_num_threads()} threads of the CPU"
    hardware = f"{name}, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores; torch {torch.__version__}"
    print(f"{hardware}; {args.rounds} rounds", flush=True)
    set_environment(torch.get_num_threads())
    plain, ours = Worker("plain"), Worker("ours")
    rows: list[dict[str, Any]] = []
    for stage in args.stages.split(","):
        for size in (args.sizes or SIZES[kind]).split(","):
            config = configured(stage, size, kind, args.overrides)
            places = args.micro_batch or PLACES[kind].get(size, PLACES[kind][stage])
            fitted, losses = fit(plain, ours, config, places)
            if fitted is None:
                print(f"\n{stage} {size}: does not fit", flush=True)
                continue
            limit = ours.ask("product")
            measured = list(measure(plain, ours, fitted, kind, args))
            rows += report(fitted, measured, losses, limit)
            if args.profile:
                profile(plain, ours, fitted, args.profile)
    plain.end()
    ours.end()
    if args.json:
        write_json(args.json, {"hardware": hardware, "rows": rows})


def configured(stage: str, size: str, kind: str, overrides: Sequence[str]) -> TrainingConfig:
    """The configuration of a stage on one process, small enough for a CPU."""
    few = [f"model.image_size={CPU_STAGE2_PIXELS}"] if (kind, stage) == ("cpu", "stage2") and size != "tiny" else []
    return load_config(stage, size, ["data.shards=none", "launch.processes=1", *few, *overrides])


def fit(
    plain: Worker, ours: Worker, config: TrainingConfig, places: int
) -> tuple[TrainingConfig | None, dict[str, float]]:
    """The configuration with the largest batch, halved from `places`, of which both take a step, and their losses."""
    while places >= (1 if isinstance(config, Stage1Config) else 2):  # a negative is another place
        fitted = replace(config, data=replace(config.data, places_per_batch=places))
        if not torch.cuda.is_available() and 2 * process_memory(fitted, bf16=False, overlap=False).total > (
            psutil.virtual_memory().available
        ):  # a GPU says so itself
            places //= 2
            continue
        first = {
            form: worker.ask("build", fitted) and worker.ask("turn", 1)
            for form, worker in ((PLAIN, plain), (OURS, ours))
        }
        if all(first.values()):
            return fitted, {form: turn.loss for form, turn in first.items()}
        places //= 2
    return None, {}


def measure(plain: Worker, ours: Worker, config: TrainingConfig, kind: str, args: argparse.Namespace) -> Iterator[Row]:
    """Rows of all forms of a stage and size, for which both workers are built."""
    auto = compiled_blocks(config)
    ways = {
        OURS: (config.train.checkpointing, auto),
        "checkpointing=selective": ("selective", auto),
        "checkpointing=full": ("full", auto),
    }
    for compiled in COMPILED[kind] if kind == "cuda" or args.compile else ():
        if compiled != auto:
            ways[f"compile={compiled}"] = (config.train.checkpointing, compiled)
    yield from take_turns(plain, ours, config, ways, kind, args.rounds)
    if isinstance(config, Stage1Config) and not config.objective.drop_hidden:
        # Another engine, because the mask token is trained then.
        dropping = replace(config, objective=replace(config.objective, drop_hidden=True))
        if ours.ask("build", dropping):
            yield from list(take_turns(plain, ours, dropping, {DROPPED: ways[OURS]}, kind, args.rounds))[1:]
        ours.ask("build", config)


def take_turns(
    plain: Worker, ours: Worker, config: TrainingConfig, ways: dict[str, tuple[str, str]], kind: str, rounds: int
) -> Iterator[Row]:
    """Rounds of the straightforward step and of ours, as `config` is, in each of the ways, after a warm-up of each."""
    plain.ask("turn", WARM_UP[kind])
    beside: list[Turn] = []
    turns: dict[str, list[Turn] | None] = {}
    for form, way in ways.items():
        ours.ask("run_blocks", *way)
        turns[form] = [] if ours.ask("turn", WARM_UP[kind]) else None
        if turns[form] is None:
            ours.ask("build", config)
    for _ in tqdm(range(rounds), "rounds", leave=False, disable=None):
        beside.append(plain.ask("turn", STEPS[kind]))
        for form, way in ways.items():
            taken = turns[form]
            if taken is not None:
                ours.ask("run_blocks", *way)
                taken.append(ours.ask("turn", STEPS[kind]))
    yield Row(PLAIN, config, beside, beside)
    yield from (Row(form, config, taken, beside) for form, taken in turns.items())


def report(config: TrainingConfig, measured: list[Row], losses: dict[str, float], limit: float) -> list[dict[str, Any]]:
    """Print the rows of a stage and size; the same as plain values. `losses`: of the first steps."""
    places, flops, on_gpu = config.data.places_per_batch, training_flops_per_place(config), torch.cuda.is_available()
    print(f"\n{config.stage} {config.size}: {places} places, {pairs_of(config)} pairs of {config.model.image_size} px; "
          f"{flops / GIGA:.4g} GFLOP a place; limit {limit / TERA:.3g} TFLOP/s")  # fmt: skip
    print(f"  {'form':<26}{'pairs/s':>9}{'MFU':>7}{'of limit':>10}{'peak GiB':>10}  ratio"
          f"{'' if on_gpu else ', of processor time'}")  # fmt: skip
    rows = []
    for row in measured:
        rows.append(said := figures(row, losses, limit))
        if row.turns is None:
            print(f"  {row.form:<26}does not fit")
            continue
        mfu = "" if said["mfu"] is None else f"{said['mfu']:.1%}"
        ratio = spread(ratios(row, "wall")) + ("" if on_gpu else f", {spread(ratios(row, 'processor'))}")
        print(f"  {row.form:<26}{said['pairs_per_second']:9.4g}{mfu:>7}{said['share_of_limit']:10.0%}"
              f"{said['peak_bytes'] / GIB:10.2f}  {ratio}")  # fmt: skip
    apart = abs(losses[OURS] / losses[PLAIN] - 1)
    print(f"  loss of the first step {losses[OURS]:.4f}, apart by {apart:.1e} of it", flush=True)
    return rows


def figures(row: Row, losses: dict[str, float], limit: float) -> dict[str, Any]:
    """A row as plain values; null is what does not fit, or is not known here."""
    config = row.config
    said: dict[str, Any] = {
        "size": config.size, "stage": config.stage, "form": row.form, "micro_batch": config.data.places_per_batch,
        "image_size": config.model.image_size, "pairs_per_second": None, "mfu": None, "share_of_limit": None,
        "peak_bytes": None, "first_loss": losses.get(row.form), "ratio": None,
    }  # fmt: skip
    if row.turns is None:
        return said
    flops, peak = config.data.places_per_batch * training_flops_per_place(config), own_peak_flops()
    seconds = statistics.median(turn.wall for turn in row.turns)
    busy = seconds
    if not torch.cuda.is_available():  # a CPU that others use too has its limit in the time that we had it
        busy = statistics.median(turn.processor for turn in row.turns) / torch.get_num_threads()
    return said | {
        "pairs_per_second": pairs_of(config) / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "share_of_limit": flops / busy / limit,
        "peak_bytes": max(turn.peak_bytes for turn in row.turns),
        "ratio": statistics.median(ratios(row, "wall")),
    }


def pairs_of(config: TrainingConfig) -> int:
    """Pairs that the decoder sees in a step."""
    each = 1 if isinstance(config, Stage1Config) else 2 * config.data.images_per_place
    return each * config.data.places_per_batch


def ratios(row: Row, clock: str) -> list[float]:
    """How often a form makes a step while the straightforward one makes one, round by round."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(row.beside, row.turns or (), strict=True)]


def spread(values: list[float]) -> str:
    """Median and range of the rounds."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def profile(plain: Worker, ours: Worker, config: TrainingConfig, trace: Path) -> None:
    """Print where the time of a step goes, in the straightforward way and in ours."""
    from step_profile import shares_by

    for name, worker in ((PLAIN, plain), (OURS, ours)):
        spent = worker.ask("profile", 2, trace if worker is ours else None)
        print(f"  {name}, profiled: {sum(seconds for _, _, seconds in spent):.3g} s a step")
        for column, title in ((0, "by part"), (1, "by kind")):
            print(f"    {title}: {shares_by(spent, column)}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/train_step.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration of all forms")
    parser.add_argument("--sizes", metavar="A,B", help=f"default: {SIZES['cpu']}; on a GPU {SIZES['cuda']}")
    parser.add_argument("--stages", default="stage1,stage2", metavar="A,B", help="default: %(default)s")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="places a step (default: as many as fit)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each (default: 3)")
    parser.add_argument("--compile", action="store_true", help="on a CPU too, which takes minutes to compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="print where the time goes, and write a trace of "
                        "the last size for chrome://tracing")  # fmt: skip
    args = parser.parse_args()
    for name, value in (("rounds", args.rounds), ("micro-batch", args.micro_batch or 1)):
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    return args


if __name__ == "__main__":
    exit_on_user_error(main)
