"""`pairvpr plan`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairvpr_dist.cli import Run, verb
from pairvpr_dist.errors import UserError

if TYPE_CHECKING:
    from pairvpr_dist.costs.hardware import Gpu
    from pairvpr_dist.scaling.assumptions import Assumptions
    from pairvpr_dist.scaling.loading import Data
    from pairvpr_dist.scaling.planner import Plan
    from pairvpr_dist.settings import TrainingConfig

GPU = "h200"
STAGES = ("stage1", "stage2")
PROCESSES = "launch.processes"
DOES_NOT_FIT = 1  # exit status
DRAWN = (".png", ".svg", ".pdf")


@verb(
    "predict whether a run fits on its GPUs, its pace, time and cost, and which settings are fastest",
    "  pairvpr plan stage1 vitg --gpus 8 --gpu h200\n"
    "  pairvpr plan stage2 vitl --gpus 7 --gpu a100-80 data.shards=data/gsv\n"
    "  pairvpr plan stage2 vitb objective=supvpr --gpus 5 --places 6000\n"
    "  pairvpr plan stage1 vitb --gpus 2 --gpu l40s --places 20000 train.epochs=100 plan.cores_per_gpu=8\n"
    "  pairvpr plan stage1 vitg --max-gpus 4096 --plot scaling.png\n"
    "  pairvpr plan stage1 vitg --gpus 8 --gpu mine --hardware my_gpus.yaml --json plan.json\n\n"
    "train.zero_stage, train.checkpointing, train.accumulate, objective.chunks and data.workers are chosen where\n"
    "you do not give them. Exit status: 0 fits, 1 does not fit, 2 a mistake in what was asked.",
)
def plan(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr plan`."""
    parser.add_argument("stage", metavar="STAGE", help="stage1 or stage2")
    parser.add_argument("size", metavar="SIZE", help="tiny, vits, vitb, vitl or vitg")
    known = "any key of configs/STAGE, objective=NAME, or plan.KEY of configs/planning.yaml"
    parser.add_argument("override", nargs="*", metavar="KEY=VALUE", help=known)
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="how many, over all nodes (default: what the batch needs of one node)"
    )
    parser.add_argument("--gpu", default=GPU, metavar="NAME", help=f"a name of configs/hardware.yaml (default: {GPU})")
    parser.add_argument("--hardware", type=Path, metavar="FILE", help="YAML with GPUs of your own, in the same form")
    parser.add_argument("--places", type=int, metavar="N", help="of an epoch (default: data.shards, else the paper's)")
    parser.add_argument("--max-gpus", type=int, metavar="N", help="also strong and weak scaling up to so many GPUs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --max-gpus: draw it, as .png, .svg or .pdf")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan for programs too")
    return run_plan


def run_plan(args: argparse.Namespace) -> None:
    """Print the plan; leave with `DOES_NOT_FIT` where nothing does. Raises `UserError`."""
    _check(args)
    from pairvpr_dist.config import load_config
    from pairvpr_dist.costs.hardware import find_gpu
    from pairvpr_dist.scaling.assumptions import load_assumptions, split_overrides

    gpu = find_gpu(args.gpu, args.hardware)
    of_run, of_plan = split_overrides(args.override)
    assumptions = load_assumptions(of_plan)
    config = load_config(args.stage, args.size, ["data.shards=[]", *of_run])
    gpus = args.gpus if args.gpus is not None else _of_a_node(config, gpu)
    config = replace(config, launch=replace(config.launch, processes=max(1, gpus)))

    from pairvpr_dist.scaling.plan_text import as_json, describe
    from pairvpr_dist.scaling.planner import check_divides, plan, setup_of

    check_divides(config, gpus)
    setup = setup_of(config, gpu, assumptions, _data(args, config, assumptions))
    fixed = [text.partition("=")[0] for text in of_run]
    found = plan(config, setup, fixed)
    print(describe(found, config))
    if args.json is not None:
        from pairvpr_dist.files import write_json

        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, as_json(found, config))
        print(f"written: {args.json}")
    if args.max_gpus is not None and found.best is not None:
        _scaling(args, found, fixed)
    if found.best is None:
        raise SystemExit(DOES_NOT_FIT)


def _of_a_node(config: TrainingConfig, gpu: Gpu) -> int:
    """As many GPUs of one node as the batch can be dealt out over."""
    batch = config.data.places_per_batch
    return max(one for one in range(1, gpu.gpus_per_node + 1) if batch % one == 0)


def _check(args: argparse.Namespace) -> None:
    """What is wrong before anything heavy is imported."""
    if args.stage not in STAGES:
        raise UserError(f"stage '{args.stage}': what is planned is training; write stage1 or stage2")
    for text in args.override:
        if text.startswith(f"{PROCESSES}="):
            raise UserError(f"{text}: a plan has a process for each GPU; give --gpus")
    for name in ("places", "max_gpus"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be positive")
    if args.places is not None and any(text.startswith("data.shards=") for text in args.override):
        raise UserError("--places: data.shards knows the number of places; give one of the two")
    if args.plot is not None and args.max_gpus is None:
        raise UserError("--plot: draws what --max-gpus computes; give both")
    if args.plot is not None and args.plot.suffix not in DRAWN:
        raise UserError(f"--plot {args.plot}: must end in {', '.join(DRAWN)}")


def _data(args: argparse.Namespace, config: Any, assumptions: Assumptions) -> Data:
    """What an epoch reads: the shards, else as many places as are given, else the paper's data."""
    from pairvpr_dist.scaling.loading import data_of_shards, given_places, paper_data

    if config.data.shards:
        return data_of_shards(config, assumptions)
    return given_places(config, assumptions, args.places) if args.places else paper_data(config, assumptions)


def _scaling(args: argparse.Namespace, found: Plan, fixed: list[str]) -> None:
    """Strong and weak scaling of the best plan, as tables, and drawn."""
    from pairvpr_dist.scaling.strong_weak import plot, strong_table, weak_table

    assert found.best is not None
    config, setup = found.best.config, found.best.setup
    asked = (config, setup.gpu, args.max_gpus, setup.data, setup.assumptions, fixed)
    print(f"\n{strong_table(*asked)}\n\n{weak_table(*asked)}")
    if args.plot is not None:
        plot(args.plot, *asked)
        print(f"written: {args.plot}")
