"""One step of the straightforward way and one of ours, from the same weights, for each of `CASES`.

`python one_step_program.py FILE` writes JSON: of each case both losses, and of each tensor of the model how far the
straightforward step moved it and how far ours ends from there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from step_worker import Steps

from pairvpr_dist.config import load_config
from pairvpr_dist.files import write_json

SMALL = ["data.shards=none", "data.places_per_batch=6", "train.precision=fp32", "optim.clip_grad_norm=1",
         "model.image_size=70", "model.decoder_depth=2"]  # fmt: skip
CASES = [(stage, size) for stage in ("stage1", "stage2") for size in ("tiny", "vits")]


def main() -> None:
    both, found = {kind: Steps(kind) for kind in ("plain", "ours")}, {}
    for stage, size in CASES:
        config = load_config(stage, size, SMALL)
        starts, ends, losses = {}, {}, {}
        for kind, steps in both.items():
            steps.build(config)
            starts[kind] = weights_of(steps)
            losses[kind] = float(steps.one())
            ends[kind] = weights_of(steps)
        assert all(torch.equal(weight, starts["ours"][name]) for name, weight in starts["plain"].items())
        found[f"{stage} {size}"] = {
            "losses": losses,
            "tensors": {
                name: [float((end - starts["plain"][name]).norm()), float((ends["ours"][name] - end).norm())]
                for name, end in ends["plain"].items()
            },
        }
    write_json(Path(sys.argv[1]), found)


def weights_of(steps: Steps) -> Any:
    weights = steps.step.full_weights() if steps.ours else steps.model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


if __name__ == "__main__":
    main()
