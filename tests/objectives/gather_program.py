"""Descriptor loss and its gradient on a fixed batch that is dealt out to the ranks.

Started by an elastic agent: `python gather_program.py OUT`; rank 0 writes the losses of all ranks and the gradient of
every parameter, averaged over ranks.
"""

from __future__ import annotations

import sys

import torch

from pairvpr_dist import PairVPR, distributed
from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import gather, rank, sum_over_ranks, world_size
from pairvpr_dist.objectives import build_objective

PLACES, VIEWS = 6, 3


def main() -> None:
    distributed.start()
    torch.manual_seed(0)
    config = load_config("stage2", "tiny", ["data.shards=none", "objective.pair_loss_weight=0"])
    objective = build_objective(config, PairVPR(config.model), ["one"])
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (PLACES, VIEWS, 3, 70, 70), generator=draws, dtype=torch.uint8)
    keys = torch.randint(0, 2**62, (PLACES, VIEWS), generator=draws)
    own = slice(rank() * PLACES // world_size(), (rank() + 1) * PLACES // world_size())
    batch = Batch(images, keys, torch.arange(PLACES), torch.zeros(PLACES, dtype=torch.int64))
    loss, _ = objective(Batch(batch.images[own], batch.keys[own], batch.places[own], batch.datasets[own]), step=0)
    loss.backward()
    content = {"losses": gather(loss.detach()[None])}
    for name, parameter in objective.model.named_parameters():
        if parameter.grad is not None:
            content[name] = sum_over_ranks(parameter.grad) / world_size()
    if rank() == 0:
        torch.save(content, sys.argv[1])
    distributed.stop()


if __name__ == "__main__":
    main()
