"""What every training objective is.

Contract: an objective is a module over a `PairVPR`; `forward(batch)` returns this rank's loss and a dict of scalar
metrics on the device, so that nothing synchronises. Averaging losses over ranks gives the loss of the global batch.
A metric that no place of the batch contributes to is NaN and is left out of averages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.pair_vpr import PairVPR

Metrics = dict[str, Tensor]
STEADY = "loss/steady"  # where weights of the loss rise over the steps: the loss with those that it has at the end


class Objective(nn.Module, ABC):
    """A loss over a model; `untrained` names the parts that it does not use, which are then frozen.

    `datasets` are the labels that `Batch.datasets` of the training places counts: a data set of one shard set each.
    """

    untrained: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()  # the names of what `validate` gives

    def __init__(self, model: PairVPR, datasets: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.datasets = list(datasets)
        for name, parameter in model.named_parameters():
            if name.startswith(self.untrained):
                parameter.requires_grad_(False)

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Loss (scalar) and metrics (scalars) of one batch at global step `step`."""

    @abstractmethod
    def validate(self, batch: Batch, step: int) -> Metrics:
        """Scalars of one batch of places that are not trained on, without gradient; their data sets are others."""

    def picture(self, batch: Batch) -> Tensor | None:
        """A picture (3, H, W) uint8 for people of what the model makes of the batch, where there is one to show."""
        return None

    def loss_per_dataset(
        self, losses: Tensor, datasets: Tensor, name: str = "loss", counted: Tensor | None = None
    ) -> Metrics:
        """Mean of `losses` (P,) for every data set, by its index (P,), as `name/data set`; empty with a single one.

        counted: (P,) bool, those that count; none: all.
        """
        if len(self.datasets) < 2:
            return {}
        kept = losses.detach().float()
        ones = torch.ones_like(kept)
        if counted is not None:
            kept, ones = (values.masked_fill(~counted, 0.0) for values in (kept, ones))
        sums, counts = (
            torch.zeros(len(self.datasets), device=losses.device).index_add_(0, datasets, values)
            for values in (kept, ones)  # bincount would wait for the device
        )
        return {f"{name}/{dataset}": sums[i] / counts[i] for i, dataset in enumerate(self.datasets)}


def mean_of_parts(parts: Sequence[Metrics]) -> Metrics:
    """Mean of each metric over equal parts of a batch, leaving NaN out, as the log does over ranks."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name].detach().float() for part in parts]).nanmean() for name in parts[0]}
