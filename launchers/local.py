"""Train and evaluate on this machine.

Contract: a stage that has ended is not run again, one that was stopped goes on where it was; so the same command is
always the right one to type.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launchers.jobs import STAGE_NAMES, jobs
from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.settings import EvalRunConfig

EXAMPLES = """examples:
  python launchers/local.py demo
  python launchers/local.py stage1 tiny data.shards=/shards/city run=runs/city
  python launchers/local.py stage1 vitb data.shards=/shards/gsv,/shards/gldv2 init.encoder=dinov2.pth launch.processes=2
  python launchers/local.py stage2 vitb data.shards=/shards/gsv init.model=runs/vitb/stage1/export
  python launchers/local.py eval vitb eval.model=runs/vitb/stage2/export eval.data=/data/my_city
  python launchers/local.py pipeline tiny data.shards=/shards/city eval.data=/data/my_city stage1.train.epochs=60
"""


def main(argv: list[str] | None = None) -> None:
    """The program. Raises `UserError`."""
    parser = argparse.ArgumentParser(
        prog="python launchers/local.py",
        description="Train and evaluate on this machine. The same command goes on with a run that was stopped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", metavar="STAGE", help=f"{', '.join(STAGE_NAMES)} or demo")
    parser.add_argument("size", metavar="SIZE", nargs="?", help="tiny, vits, vitb, vitl or vitg (demo: always tiny)")
    parser.add_argument("override", metavar="KEY=VALUE", nargs="*", help="any key of configs/STAGE/default.yaml")
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    args = parser.parse_args(argv)
    if args.stage == "demo":
        from launchers.demo import demo

        demo([*([args.size] if args.size else []), *args.override])
    elif args.size is None:
        raise UserError(f"{args.stage} needs a size: python launchers/local.py {args.stage} tiny ...")
    else:
        run(jobs(args.stage, args.size, args.override))


def run(configs: Sequence[Any]) -> None:
    """Check all stages, then run them one after another; writes a report where an evaluation was among them."""
    check_all(configs)
    for config in configs:
        run_evaluation(config) if isinstance(config, EvalRunConfig) else run_training_stage(config)


def check_all(configs: Sequence[Any]) -> None:
    """Everything that can be known to fail on this machine is told before the first stage starts."""
    from launchers.processes import choose_accelerator

    choose_accelerator()
    from pairvpr_dist.training.run_folder import check, check_folder, check_gpus

    for config in checkable(configs):
        if isinstance(config, EvalRunConfig):
            check_evaluation(config)
        else:
            check_folder(config)
            check(config)
        check_gpus(config.launch.processes)


def checkable(configs: Sequence[Any]) -> list[Any]:
    """The same stages, none to start from a model that one before it is still to make: that cannot be looked at yet."""
    made = {f"{config.run}/{config.stage}/export" for config in configs}
    found = []
    for config in configs:
        if isinstance(config, EvalRunConfig):
            if config.eval.model not in made and not Path(config.eval.model).exists():
                raise UserError(f"eval.model={config.eval.model}: no such file or folder")
        elif config.init.model in made and not Path(config.init.model).exists():
            config = replace(config, init=replace(config.init, model=None))
        found.append(config)
    return found


def check_evaluation(config: EvalRunConfig) -> None:
    """That there is data to evaluate on, and that <run>/eval is new, empty or this very evaluation's."""
    from pairvpr_dist.files import read_json
    from pairvpr_dist.retrieval.protocols import load_protocol
    from pairvpr_dist.retrieval.results import RESULTS

    load_protocol(config.eval.protocol, config.eval.data, config.eval.positive_distance)
    out = Path(config.run) / "eval"
    if (out / RESULTS).exists():
        if read_json(out / RESULTS, "the results of an evaluation").get("config") != vars(config.eval):
            raise UserError(f"{out}: holds an evaluation with other settings; remove it or name another run=...")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something else than an evaluation; name another run=...")


def run_training_stage(config: Any) -> None:
    """Train one stage, unless it has ended."""
    from launchers.processes import run_training
    from pairvpr_dist.files import sole_owner
    from pairvpr_dist.training.run_folder import LOCK, is_finished, keep_config, open_folder

    folder = open_folder(config)
    if is_finished(folder):
        print(f"{config.stage}: has ended before; its model is {folder / 'export'}")
        return
    with sole_owner(folder / LOCK, "wait for it or name another run=..."):
        keep_config(config)
        run_training(config, folder)
    print(f"{config.stage}: ended; its model is {folder / 'export'}")


def run_evaluation(config: EvalRunConfig) -> None:
    """Evaluate into <run>/eval, unless that is done, and write the run's report."""
    from launchers.processes import run_evaluation_processes
    from pairvpr_dist.retrieval.evaluate import evaluate_model

    if not is_evaluated(config):
        if config.launch.processes > 1 or config.launch.threads:  # OpenMP counts its threads when a process starts
            run_evaluation_processes(config)
        else:
            evaluate_model(config.eval, Path(config.run) / "eval")
    tell_evaluation(config)


def is_evaluated(config: EvalRunConfig) -> bool:
    """Whether <run>/eval holds these results; `UserError` when they are those of other weights."""
    from pairvpr_dist.retrieval.evaluate import weights_digest
    from pairvpr_dist.retrieval.results import RESULTS, read_results
    from pairvpr_dist.retrieval.work import work_folder

    out = Path(config.run) / "eval"
    if not (out / RESULTS).exists():
        return False
    if read_results(out)["model"]["sha256"] != weights_digest(Path(config.eval.model)):
        raise UserError(f"{out}: holds an evaluation of other weights; remove it to measure {config.eval.model}")
    shutil.rmtree(work_folder(out), ignore_errors=True)  # of a process that was killed at its very end
    print(f"eval: has ended before; remove {out} to measure again")
    return True


def tell_evaluation(config: EvalRunConfig) -> None:
    """Print the results, and write the run's report."""
    from pairvpr_dist.retrieval.report import rewrite_report
    from pairvpr_dist.retrieval.results import read_results, summary

    print(summary(read_results(Path(config.run) / "eval")))
    print(f"report: {rewrite_report(Path(config.run))}")


def _refuse(message: str) -> None:
    raise UserError(f"{message}; see python launchers/local.py --help")


if __name__ == "__main__":
    exit_on_user_error(main)
