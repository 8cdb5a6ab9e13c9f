"""Start-up: help, and what only shows files, come without the libraries that take seconds to load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pairvpr_dist
from pairvpr_dist.cli import known_verbs
from pairvpr_dist.models.pair_vpr import PairVPR

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "deepspeed", "timm", "faiss", "matplotlib", "scipy", "sklearn", "tensorboard",
         "pytorch_metric_learning", "submitit")  # fmt: skip
HELP = (
    ["launchers/local.py"], ["launchers/slurm.py"], *(["launchers/slurm.py", verb] for verb in ("status", "resume")),
    ["shards/build.py"], *(["shards/build.py", kind] for kind in ("folder", "synthetic", "join")),
    ["shards/verify.py"], ["benchmarks/startup.py"], ["pairvpr"], *(["pairvpr", verb] for verb in known_verbs()),
)  # fmt: skip
LIGHT = (  # what shows the files of a run, or plans one, without a model
    "pairvpr_dist", "pairvpr_dist.config", "pairvpr_dist.retrieval.compare_text", "pairvpr_dist.training.run_text",
    "launchers.jobs", "launchers.status", "launchers.demo",
)  # fmt: skip
# A child for each line of stdin, which says what it exited with and which modules it has: forked, as that is quick.
PROGRAM = """
import importlib, json, os, runpy, sys
from contextlib import redirect_stdout
for line in sys.stdin:
    if os.fork():
        os.wait()
        continue
    name, *arguments = json.loads(line)
    status = None
    with redirect_stdout(open(os.devnull, "w")):
        try:
            sys.argv = [name, *arguments]
            if name == "pairvpr":
                from pairvpr_dist.cli import main
                main()
            elif name.endswith(".py"):
                runpy.run_path(name, run_name="__main__")
            else:
                importlib.import_module(name)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, sorted(sys.modules)]), flush=True)
    os._exit(0)
"""


def loaded(commands: list[list[str]]) -> list[tuple[int | None, set[str]]]:
    """Exit status of each program, None of a module, and the packages that it has loaded."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], input="".join(f"{json.dumps(command)}\n" for command in commands), text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [(status, {name.partition(".")[0] for name in names}) for status, names in map(json.loads, told)]


def test_help_loads_nothing_heavy() -> None:
    found = loaded([[*command, "--help"] for command in HELP])
    told = {" ".join(command): modules & {*HEAVY} for command, (_, modules) in zip(HELP, found, strict=True)}
    assert {command: heavy for command, heavy in told.items() if heavy} == {}
    assert {status for status, _ in found} == {0}
    assert all("argparse" in modules for _, modules in found)


@pytest.mark.parametrize("module", LIGHT)
def test_what_needs_no_model_loads_nothing_heavy(module: str) -> None:
    ((_, modules),) = loaded([[module]])
    assert module.partition(".")[0] in modules
    assert modules & {*HEAVY} == set()


def test_the_model_is_had_from_the_package() -> None:
    assert pairvpr_dist.PairVPR is PairVPR
    with pytest.raises(AttributeError, match="PairVRP"):
        pairvpr_dist.PairVRP  # noqa: B018
