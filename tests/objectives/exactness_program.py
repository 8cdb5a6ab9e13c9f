"""Stage 2 on fixed batches that are dealt out to the ranks.

Started by an elastic agent: `python exactness_program.py OUT`; rank 0 writes for every case and number of chunks the
loss, the mined triplets, every parameter's gradient averaged over ranks, and the bytes that a rank holds for its
backward pass.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from pairvpr_dist import PairVPR, distributed
from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import gather, rank, sum_over_ranks, world_size
from pairvpr_dist.objectives import build_objective, place_recognition

VIEWS = 3
PLACES = {
    "places": [0, 1, 2, 3, 4, 5],
    "the first rank has one place": [0, 0, 0, 1, 2, 3],
    "no negatives": [7, 7, 7, 7, 7, 7],
}
CHUNKS = (1, 4)


def main() -> None:
    distributed.start()
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, VIEWS, 3, 70, 70), generator=draws, dtype=torch.uint8)
    keys = torch.randint(0, 2**62, (6, VIEWS), generator=draws)
    own = slice(rank() * 6 // world_size(), (rank() + 1) * 6 // world_size())
    content = {}
    for case, places in PLACES.items():
        zeros = torch.zeros(6, dtype=torch.int64)[own]
        batch = Batch(images[own], keys[own], torch.tensor(places)[own], zeros, zeros)
        for chunks in CHUNKS:
            content[case, chunks] = measure(batch, chunks)
    if rank() == 0:
        torch.save(content, sys.argv[1])
    distributed.stop()


def measure(batch: Batch, chunks: int) -> dict[str, Any]:
    torch.manual_seed(0)
    config = load_config("stage2", "tiny", [
        "data.shards=none", "objective.pair_loss_warmup_steps=[0,0]", f"objective.chunks={chunks}",
    ])  # fmt: skip
    objective = build_objective(config, PairVPR(config.model), ["one"])
    held: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    mined = []
    mine = place_recognition.mine_triplets
    place_recognition.mine_triplets = lambda *given: mined.append(mine(*given)) or mined[-1]
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss, metrics = objective(batch, step=0)
    place_recognition.mine_triplets = mine
    loss.backward()
    return {
        "loss": mean(loss.detach()),
        **{name: mean(value) for name, value in metrics.items()},
        "triplets": gather(torch.stack([t.long() for t in mined[0]])[None]),
        "held": gather(torch.tensor([sum(held.values())])),
        "gradients": {name: mean(gradient(parameter)) for name, parameter in objective.model.named_parameters()},
    }


def mean(value: Tensor) -> Tensor:
    return sum_over_ranks(value) / world_size()


def gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


if __name__ == "__main__":
    main()
