"""SUP-VPR's stage 2 on a fixed batch that is dealt out to the ranks.

Started by an elastic agent: `python city_exactness_program.py OUT`; rank 0 writes for every case the loss, the metrics,
the mined images and every parameter's gradient averaged over ranks.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from pairvpr_dist import PairVPR, distributed
from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import gather, rank, sum_over_ranks, world_size
from pairvpr_dist.objectives import build_objective, city_recognition

VIEWS = 3
CITIES = {"three cities": [0, 1, 2, 0, 1, 1], "one is synthetic": [0, -1, 2, 0, -1, 2], "one city": [0, 0, 0, -1, 0, 0]}
CHANGES = {"adaptive": [], "random": ["objective.mining=random"], "in chunks": ["objective.chunks=4"]}


def main() -> None:
    distributed.start()
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, VIEWS, 3, 70, 70), generator=draws, dtype=torch.uint8)
    keys = torch.randint(0, 2**62, (6, VIEWS), generator=draws)
    own = slice(rank() * 6 // world_size(), (rank() + 1) * 6 // world_size())
    content = {}
    for case, cities in CITIES.items():
        datasets = torch.zeros(6, dtype=torch.int64)
        batch = Batch(images[own], keys[own], torch.arange(6)[own], datasets[own], torch.tensor(cities)[own])
        for way, changes in CHANGES.items():
            content[case, way] = measure(batch, changes)
    if rank() == 0:
        torch.save(content, sys.argv[1])
    distributed.stop()


def measure(batch: Batch, changes: list[str]) -> dict[str, Any]:
    torch.manual_seed(0)
    config = load_config("stage2", "tiny", ["objective=supvpr", "data.shards=none", *changes])
    objective = build_objective(config, PairVPR(config.model), ["one"])
    mined = []
    mine = city_recognition.mine_negatives
    city_recognition.mine_negatives = lambda *given: mined.append(mine(*given)) or mined[-1]
    loss, metrics = objective(batch, step=0)
    city_recognition.mine_negatives = mine
    loss.backward()
    rows, found = mined[0]
    return {
        "loss": mean(loss.detach()),
        **{name: mean(value) for name, value in metrics.items()},
        "mined": gather(rows.masked_fill(~found, -1)),
        "gradients": {
            name: mean(torch.zeros_like(p) if p.grad is None else p.grad)
            for name, p in objective.model.named_parameters()
        },
    }


def mean(value: Tensor) -> Tensor:
    return sum_over_ranks(value) / world_size()


if __name__ == "__main__":
    main()
