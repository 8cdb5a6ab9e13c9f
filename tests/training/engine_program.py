"""States in and out of the engine at every precision and ZeRO stage, and a gradient that is not finite.

Started by an elastic agent: `python engine_program.py SHARDS REPORT`; rank 0 writes what it saw as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from small_runs import small_config

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.files import write_json
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.training.engine import Engine, FullState
from pairvpr_dist.training.loop import initial_model
from pairvpr_dist.training.optimizer import set_rates
from pairvpr_dist.training.schedules import make_schedule

STEP = 5  # the pair loss has its weight, so that all is trained, a bias of one number too


def differing(a: FullState, b: FullState) -> list[str]:
    """Names of the tensors that are not the same bit for bit."""
    ours, theirs = a.model | a.moments, b.model | b.moments
    names = sorted(ours.keys() | theirs.keys())
    return [n for n in names if n not in ours or n not in theirs or not torch.equal(ours[n], theirs[n])]


def gathered(engine: Engine) -> FullState:
    """The full state on every rank, which makes the comparisons below collective."""
    state = [engine.full_state()]
    torch.distributed.broadcast_object_list(state)
    assert state[0] is not None
    return state[0]


def observe(shards: Path, precision: str, zero: int, left: FullState | None) -> tuple[dict[str, Any], FullState]:
    """One engine's life: take over `left`, update, refuse a gradient that is NaN, update again."""
    config = small_config(
        "stage2", shards, Path("unused"), [f"train.zero_stage={zero}", f"train.precision={precision}"]
    )
    loader = EpochLoader(
        config.data, config.model.image_size, config.seed, distributed.rank(), distributed.world_size()
    )
    model = initial_model(config)
    if left is not None:
        model.load_state_dict(left.model)
    started = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = Engine(build_objective(config, model, loader.datasets), config)
    fresh = gathered(engine)
    if left is not None:
        engine.load_full_state(left)
    taken = gathered(engine)
    batch = next(loader.batches(0, 1))
    set_rates(engine.groups, make_schedule(config, loader.steps_per_epoch), STEP)
    applied = engine.step(engine.forward(batch, STEP)[0])
    norm, updated = engine.gradient_norm(), gathered(engine)
    refused = engine.step(engine.forward(batch, STEP)[0] * float("nan"))
    after_refusal = gathered(engine)
    applied_again = engine.step(engine.forward(batch, STEP)[0])
    last = gathered(engine)
    return {
        "precision": precision,
        "zero": zero,
        "changed by the engine": differing(FullState(started, {}, 0), FullState(fresh.model, {}, 0)),
        "changed by taking over": [] if left is None else differing(left, taken),
        "updates": [taken.updates, updated.updates, after_refusal.updates, last.updates],
        "applied": [applied, refused, applied_again],
        "gradient_norm": norm,
        "moved": len(differing(taken, updated)),
        "changed by the refused update": differing(updated, after_refusal),
        "moved again": len(differing(after_refusal, last)),
    }, last


def main() -> None:
    shards, report = map(Path, sys.argv[1:])
    distributed.start()
    rows = []
    left: FullState | None = None
    for precision in ("fp32", "bf16"):
        for zero in (2, 0, 3, 1):  # each takes over from the one before
            row, left = observe(shards, precision, zero, left)
            rows.append(row)
    if distributed.rank() == 0:
        write_json(report, rows)
    distributed.stop()


if __name__ == "__main__":
    main()
