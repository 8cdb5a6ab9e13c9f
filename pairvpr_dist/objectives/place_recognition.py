"""Stage 2: a metric loss of the descriptor plus cross-entropy of the pair score.

Contract: exact at any number of ranks. Descriptors are gathered with gradient, so that miner, descriptor loss and pair
mining see the whole batch on every rank. Every image is an anchor once, with its hardest positive and its hardest
negative of the whole batch; each rank scores the pairs of its own images, a fixed number, and gets the dense features
of others' partners with gradient. An anchor without a positive or a negative is paired with itself and weighs nothing.

With `chunks`, descriptors come first and pairs are scored in parts, and the backward pass computes each part's
activations again (as GradCache does, Gao et al. 2021): the same loss and gradient, with the activations of one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor

from pairvpr_dist.data.augmentation import DeviceAugment
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import fetch_rows, gather, gather_with_gradient, rank, world_size
from pairvpr_dist.models.blocks import recomputed
from pairvpr_dist.models.pair_vpr import Description, PairVPR
from pairvpr_dist.objectives.base import STEADY, Metrics, Objective
from pairvpr_dist.objectives.named_losses import build_loss, build_miner
from pairvpr_dist.settings import AugmentConfig, PlaceRecognitionConfig


class Triplets(NamedTuple):
    """The partners of M anchors, as rows of the M images."""

    positives: Tensor  # (M,) int64: the image of the same place that looks least alike; the anchor where there is none
    negatives: Tensor  # (M,) int64: the image of another place that looks most alike; the anchor where there is none
    complete: Tensor  # (M,) bool: the anchor has both


def mine_triplets(miner: BatchHardMiner, descriptors: Tensor, labels: Tensor) -> Triplets:
    """The hardest partners of every image, from descriptors (M, D) and places (M,)."""
    anchors, positives, negatives = miner(descriptors, labels)
    own = torch.arange(len(labels), device=labels.device)
    filled = own.clone(), own.clone(), torch.zeros_like(own, dtype=torch.bool)
    for rows, values in zip(filled, (positives, negatives, True), strict=True):
        rows[anchors] = values
    return Triplets(*filled)


def ramp(step: int, start: int, end: int) -> float:
    """0 before `start`, 1 from `end` on, linear between; [0, 0] is 1 from the first step on."""
    return 1.0 if step >= end else max(0.0, (step - start) / (end - start))


class PlaceRecognition(Objective):
    """Descriptor and pair classifier, trained together."""

    untrained = ("pixel_head", "encoder.mask_token")
    validated = ("loss", "loss/descriptor", "loss/pair", "pair_accuracy")

    def __init__(
        self, model: PairVPR, config: PlaceRecognitionConfig, augment: AugmentConfig, datasets: Sequence[str]
    ) -> None:
        super().__init__(model, datasets)
        self.config = config
        self.augment = DeviceAugment(augment.colour_jitter, augment.blur)
        self.descriptor_loss = build_loss(config.descriptor_loss)
        self.descriptor_miner = build_miner(config.descriptor_miner) if config.descriptor_miner else None
        self.pair_miner = BatchHardMiner()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Descriptor loss over the global batch plus weighted pair loss over this rank's pairs; see `Objective`.

        The pair loss is also told for each data set, by the anchors' places.
        """
        loss, metrics, pair_losses, complete = self._losses(batch, step)
        datasets = batch.datasets.repeat_interleave(batch.images.shape[1])
        return loss, metrics | self.loss_per_dataset(pair_losses, datasets, "loss/pair", complete)

    @torch.no_grad()
    def validate(self, batch: Batch, step: int) -> Metrics:
        """The same losses; see `Objective`."""
        loss, metrics, _, _ = self._losses(batch, step)
        return {"loss": loss} | metrics

    def _losses(self, batch: Batch, step: int) -> tuple[Tensor, Metrics, Tensor, Tensor]:
        """Loss, metrics, and of each of the rank's images (A,) its pair loss and whether it counts."""
        with torch.no_grad():
            images = self.augment(batch).flatten(0, 1)
        described = self._describe(images)
        descriptors = gather_with_gradient(described.descriptors)
        labels = gather(batch.places.repeat_interleave(batch.images.shape[1]))

        mined = None if self.descriptor_miner is None else self.descriptor_miner(descriptors, labels)
        descriptor_loss = self.descriptor_loss(descriptors, labels, mined)

        triplets = mine_triplets(self.pair_miner, descriptors.detach(), labels)
        own = slice(rank() * len(images), (rank() + 1) * len(images))
        positives, negatives, complete = (rows[own] for rows in triplets)
        logits = self._pair_logits(described.dense, torch.cat([positives, negatives])).unflatten(0, (2, -1))
        targets = torch.tensor([[1.0], [0.0]], device=logits.device).expand_as(logits)
        pair_losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=0)
        # Averaged over ranks, as ZeRO does, this is the mean over the complete anchors of the whole batch.
        shares = complete * world_size() / triplets.complete.sum().clamp(min=1)
        pair_loss = (pair_losses * shares).sum()

        weight = self.config.pair_loss_weight * ramp(step, *self.config.pair_loss_warmup_steps)
        nothing = torch.where(triplets.complete.any(), 0.0, float("nan"))  # to be told of pairs, where there are none
        metrics = {
            "loss/descriptor": descriptor_loss.detach(),
            "loss/pair": pair_loss.detach() + nothing,
            "pair_accuracy": (((logits > 0) == (targets > 0.5)).float().mean(dim=0) * shares).sum() + nothing,
        }
        if self.config.pair_loss_warmup_steps[1] > 0:
            metrics[STEADY] = (descriptor_loss + self.config.pair_loss_weight * pair_loss).detach()
        return descriptor_loss + weight * pair_loss, metrics, pair_losses, complete

    def _describe(self, images: Tensor) -> Description:
        """Descriptors and dense features of the rank's images, in chunks."""
        chunks = self.config.chunks
        parts = [self.model.describe(part, recompute=chunks > 1) for part in images.chunk(chunks)]
        if len(parts) == 1:
            return parts[0]
        return Description(torch.cat([p.descriptors for p in parts]), torch.cat([p.dense for p in parts]))

    def _pair_logits(self, dense: Tensor, partners: Tensor) -> Tensor:
        """Scores (2 A,) of the rank's images, twice over, with `partners` (2 A,), rows of the whole batch."""
        table, places = fetch_rows(dense, partners)
        anchors = torch.arange(len(dense), device=dense.device).repeat(2)
        if self.config.chunks == 1:
            return self.model.score_pairs(dense[anchors], table[places])

        def score(dense: Tensor, table: Tensor, anchors: Tensor, places: Tensor) -> Tensor:
            return self.model.score_pairs(dense[anchors], table[places])

        parts = zip(*(rows.chunk(self.config.chunks) for rows in (anchors, places)), strict=True)
        return torch.cat([recomputed(score, dense, table, *part) for part in parts])
