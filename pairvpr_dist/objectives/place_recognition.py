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
        """Descriptor loss over the global batch plus weighted pair loss over this rank's pairs; see `Objective`."""
        with torch.no_grad():
            images = self.augment(batch).flatten(0, 1)
        described = self.model.describe(images)
        labels = batch.places.repeat_interleave(batch.images.shape[1])

        everything, all_labels = gather_with_gradient(described.descriptors), gather(labels)
        mined = self.descriptor_miner(everything, all_labels)
        descriptor_loss = self.descriptor_loss(everything, all_labels, mined)

        positive, negative = self._pair_logits(described.descriptors, described.dense, labels)
        logits = torch.cat([positive, negative])
        targets = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
        pair_loss = F.binary_cross_entropy_with_logits(logits, targets)

        weight = self.config.pair_loss_weight * ramp(step, *self.config.pair_loss_warmup_steps)
        metrics = {
            "loss/descriptor": descriptor_loss.detach(),
            "loss/pair": pair_loss.detach(),
            "pair_accuracy": ((logits > 0) == (targets > 0.5)).float().mean(),
        }
        return descriptor_loss + weight * pair_loss, metrics

    def _pair_logits(self, descriptors: Tensor, dense: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (A,) of (anchor, hardest positive) and of (anchor, hardest negative); A = images of the rank."""
        anchors, positives, negatives = self.pair_miner(descriptors.detach(), labels)
        x = torch.cat([anchors, anchors])
        y = torch.cat([positives, negatives])
        return self.model.score_pairs(dense[x], dense[y]).chunk(2)  # type: ignore[return-value]
