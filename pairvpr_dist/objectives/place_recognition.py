"""Stage 2: Multi-Similarity loss of the descriptor plus cross-entropy of the pair score.

Contract: descriptors are gathered over all ranks with gradient, so that miner and descriptor loss see the whole batch
on every rank. Pairs are mined hardest-in-batch among the places of the rank, a fixed number per rank: every image is an
anchor once, with its hardest positive and its hardest negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner
from torch import Tensor

from pairvpr_dist.data.augmentation import DeviceAugment
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import gather, gather_with_gradient
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.objectives.base import Metrics, Objective
from pairvpr_dist.settings import AugmentConfig, PlaceRecognitionConfig


def ramp(step: int, start: int, end: int) -> float:
    """0 before `start`, 1 from `end` on, linear between; [0, 0] is 1 from the first step on."""
    return 1.0 if step >= end else max(0.0, (step - start) / (end - start))


class PlaceRecognition(Objective):
    """Descriptor and pair classifier, trained together."""

    untrained = ("pixel_head", "encoder.mask_token")

    def __init__(
        self, model: PairVPR, config: PlaceRecognitionConfig, augment: AugmentConfig, datasets: Sequence[str]
    ) -> None:
        super().__init__(model, datasets)
        self.config = config
        self.augment = DeviceAugment(augment.colour_jitter)
        self.descriptor_miner = MultiSimilarityMiner(epsilon=config.epsilon)
        self.descriptor_loss = MultiSimilarityLoss(alpha=config.alpha, beta=config.beta, base=config.base)
        self.pair_miner = BatchHardMiner()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Descriptor loss over the global batch plus weighted pair loss over this rank's pairs; see `Objective`.

        The pair loss is also told for each data set, by the anchors' places.
        """
        loss, metrics, pair_losses, anchors = self._losses(batch, step)
        datasets = batch.datasets.repeat_interleave(batch.images.shape[1])[anchors]
        return loss, metrics | self.loss_per_dataset(pair_losses, datasets, "loss/pair")

    @torch.no_grad()
    def validate(self, batch: Batch, step: int) -> Metrics:
        """The same losses; see `Objective`."""
        loss, metrics, _, _ = self._losses(batch, step)
        return {"loss": loss} | metrics

    def _losses(self, batch: Batch, step: int) -> tuple[Tensor, Metrics, Tensor, Tensor]:
        """Loss, metrics, and the pair loss (A,) of each anchor with the rows (A,) of these among the rank's images."""
        with torch.no_grad():
            images = self.augment(batch).flatten(0, 1)
        described = self.model.describe(images)
        labels = batch.places.repeat_interleave(batch.images.shape[1])

        everything, all_labels = gather_with_gradient(described.descriptors), gather(labels)
        mined = self.descriptor_miner(everything, all_labels)
        descriptor_loss = self.descriptor_loss(everything, all_labels, mined)

        anchors, logits = self._pair_logits(described.descriptors, described.dense, labels)
        targets = torch.zeros_like(logits)
        targets[:, 0] = 1
        pair_losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
        pair_loss = pair_losses.mean()

        weight = self.config.pair_loss_weight * ramp(step, *self.config.pair_loss_warmup_steps)
        metrics = {
            "loss/descriptor": descriptor_loss.detach(),
            "loss/pair": pair_loss.detach(),
            "pair_accuracy": ((logits > 0) == (targets > 0.5)).float().mean(),
        }
        return descriptor_loss + weight * pair_loss, metrics, pair_losses, anchors

    def _pair_logits(self, descriptors: Tensor, dense: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors (A,) and their scores (A, 2) with the hardest positive and the hardest negative; A = images."""
        anchors, positives, negatives = self.pair_miner(descriptors.detach(), labels)
        x = torch.cat([anchors, anchors])
        y = torch.cat([positives, negatives])
        return anchors, self.model.score_pairs(dense[x], dense[y]).unflatten(0, (2, -1)).T
