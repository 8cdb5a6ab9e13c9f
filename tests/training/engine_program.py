"""States in and out of the engine at every precision and ZeRO stage, and a gradient that is not finite.

Started by an elastic agent: `python engine_program.py SHARDS REPORT`; rank 0 writes what it saw as JSON.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from small_runs import small_config

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.files import write_json
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.training.engine import Engine, Stretch, assemble
from pairvpr_dist.training.optimizer import set_rates
from pairvpr_dist.training.schedules import make_schedule
from pairvpr_dist.training.starting import initial_model, start_or_resume

STEP = 5  # the pair loss has its weight, so that all is trained, a bias of one number too


@dataclass
class State:
    """The whole state, as the parts of all ranks make it up."""

    tensors: dict[str, torch.Tensor]
    updates: int

    def read(self, key: str, start: int, numbers: int) -> torch.Tensor:
        return self.tensors[key][start : start + numbers]


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same bit for bit."""
    names = sorted(a.keys() | b.keys())
    return [n for n in names if n not in a or n not in b or not torch.equal(a[n].flatten(), b[n].flatten())]


def gathered(engine: Engine) -> State:
    """The full state on every rank."""
    own = {key: Stretch(held.start, held.values.clone()) for key, held in engine.part().items()}
    parts = distributed.gather_objects(own)
    keys = {key for part in parts for key in part}
    return State({key: assemble(parts, key).clone() for key in keys}, engine.updates())


def weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a state's tensors that are weights or buffers, by their names in the model."""
    return {key.removeprefix("weight/"): value for key, value in tensors.items() if key.startswith("weight/")}


def observe(shards: Path, precision: str, zero: int, left: State | None) -> tuple[dict[str, Any], State]:
    """One engine's life: take over `left`, update, refuse a gradient that is NaN, update again."""
    config = small_config(
        "stage2", shards, Path("unused"), [f"train.zero_stage={zero}", f"train.precision={precision}"]
    )
    loader = EpochLoader(
        config.data, config.model.image_size, config.seed, distributed.rank(), distributed.world_size()
    )
    model = initial_model(config)
    if left is not None:
        model.load_state_dict({n: left.tensors[f"weight/{n}"].view(t.shape) for n, t in model.state_dict().items()})
    started = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = Engine(build_objective(config, model, loader.datasets), config)
    fresh = gathered(engine)
    if left is not None:
        engine.load(left.read, left.updates)
    taken = gathered(engine)
    batch = next(loader.batches(0, 1))
    set_rates(engine.groups, make_schedule(config, loader.steps_per_epoch), STEP)
    applied = engine.step(engine.forward(batch, STEP)[0])
    norm, updated = engine.gradient_norm(), gathered(engine)
    refused = engine.step(engine.forward(batch, STEP)[0] * float("nan"))
    after_refusal = gathered(engine)
    applied_again = engine.step(engine.forward(batch, STEP)[0])
    last, whole = gathered(engine), engine.full_weights()
    engine.close()
    return {
        "precision": precision,
        "zero": zero,
        "changed by the engine": differing(started, weights(fresh.tensors)),
        "changed by taking over": [] if left is None else differing(left.tensors, taken.tensors),
        "updates": [taken.updates, updated.updates, after_refusal.updates, last.updates],
        "applied": [applied, refused, applied_again],
        "gradient_norm": norm,
        "moved": len(differing(taken.tensors, updated.tensors)),
        "changed by the refused update": differing(updated.tensors, after_refusal.tensors),
        "moved again": len(differing(after_refusal.tensors, last.tensors)),
        "other in the full weights": [] if whole is None else differing(whole, weights(last.tensors)),
    }, last


def nan_at_call(number: int) -> Callable[..., torch.Tensor]:
    """A forward hook that makes a module's output NaN at one of its calls, the first being 1."""
    calls = count(1)
    return lambda module, inputs, output: output * float("nan") if next(calls) == number else output


def in_parts(shards: Path, precision: str, zero: int) -> dict[str, Any]:
    """A step in parts, after one that was refused for its second part, beside the same step at once.

    See `Engine.train_on`.
    """
    moved: dict[int, dict[str, torch.Tensor]] = {}
    answers: list[bool] = []
    for parts in (1, 3):
        config = small_config("stage1", shards, Path("unused"), [
            f"train.zero_stage={zero}", f"train.precision={precision}", f"train.accumulate={parts}",
        ])  # fmt: skip
        loader = EpochLoader(
            config.data, config.model.image_size, config.seed, distributed.rank(), distributed.world_size()
        )
        engine, _ = start_or_resume(config, None, loader.datasets)
        batch = next(loader.batches(0, 1))
        set_rates(engine.groups, make_schedule(config, loader.steps_per_epoch), STEP)
        before = gathered(engine).tensors
        if parts > 1:
            head = engine.objective.model.pixel_head.register_forward_hook(nan_at_call(2))
            loss, _, applied = engine.train_on(batch, STEP)
            head.remove()
            answers += [bool(loss.isnan()), not applied, not differing(before, gathered(engine).tensors)]
        answers.append(engine.train_on(batch, STEP)[2])
        answers.append(engine.updates() == 1)
        after = gathered(engine).tensors
        moved[parts] = {key: after[key] - before[key] for key in after if key.startswith("exp_avg/")}
        engine.close()
    whole, summed = (torch.cat(list(moved[parts].values())) for parts in (1, 3))
    return {
        "precision": precision,
        "zero": zero,
        "answers": answers,
        "size": float(whole.norm()),
        "deviation": float((summed - whole).norm() / whole.norm()),
    }


def left_by_closed(shards: Path, zero: int) -> int:
    """How much of an engine that has made a step is still in memory when it has been closed, as the self-check's is."""
    config = small_config("stage2", shards, Path("unused"), [f"train.zero_stage={zero}"])
    loader = EpochLoader(
        config.data, config.model.image_size, config.seed, distributed.rank(), distributed.world_size()
    )
    engine, _ = start_or_resume(config, None, loader.datasets)
    parts = [weakref.ref(engine.engine), weakref.ref(engine.objective.model)]
    engine.step(engine.forward(next(loader.batches(0, 1)), STEP)[0])
    engine.close()
    return sum(part() is not None for part in parts)


def main() -> None:
    shards, report = map(Path, sys.argv[1:])
    distributed.start()
    rows = []
    left: State | None = None
    for precision in ("fp32", "bf16"):
        for zero in (2, 0, 3, 1):  # each takes over from the one before
            row, left = observe(shards, precision, zero, left)
            rows.append(row)
    for row in rows[:4]:
        row["left by a closed engine"] = left_by_closed(shards, row["zero"])
    for row in rows:
        if row["precision"] == "fp32" or row["zero"] > 1:
            row["in parts"] = in_parts(shards, row["precision"], row["zero"])
    if distributed.rank() == 0:
        write_json(report, rows)
    distributed.stop()


if __name__ == "__main__":
    main()
