"""A straightforward training step of both stages, as one would write it in PyTorch: what ours is measured against.

Contract: eager; the encoder sees view by view (stage 1) or the image batch at once (stage 2), pairs pass in two decoder
calls; the pixel head and the loss run over all tokens and are masked after; fp32 on a CPU, autocast to fp16 with scaled
gradients on a GPU; `torch.optim.AdamW` as it comes; `loss.item()` every step. Model, augmentation, mined triplets,
parameter groups and clipping are those of the configuration, so loss and update are those of `Engine` within rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor

from pairvpr_dist.data.augmentation import DeviceAugment, random_masks
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.models.patches import normalised, patchify
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.objectives.named_losses import build_loss, build_miner
from pairvpr_dist.settings import PATCH, Stage1Config, Stage2Config, TrainingConfig
from pairvpr_dist.training.optimizer import parameter_groups


class PlainStep:
    """A model with its optimizer. `model` must be on `device`."""

    def __init__(self, model: PairVPR, config: TrainingConfig, device: torch.device) -> None:
        build_objective(config, model, [])  # it says what is trained
        self.model, self.config, self.device = model, config, device
        self.half = device.type == "cuda"
        first, second = config.optim.betas
        self.optimizer = torch.optim.AdamW(parameter_groups(model, config.optim), betas=(first, second))
        for group in self.optimizer.param_groups:
            group["lr"] = config.optim.lr * group["lr_scale"]
            group["weight_decay"] = config.optim.weight_decay * group["wd_scale"]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half)
        loss: Stage1Loss | Stage2Loss = Stage1Loss(config) if isinstance(config, Stage1Config) else Stage2Loss(config)
        self.loss = loss

    def step(self, batch: Batch) -> float:
        """Forward, backward and update on a batch on the device: the loss."""
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            loss = self.loss(self.model, batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.config.optim.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


class Stage1Loss:
    """Masked modelling of the first view with the help of the second."""

    def __init__(self, config: Stage1Config) -> None:
        self.mask_ratio = config.objective.mask_ratio
        self.augment = DeviceAugment(config.data.augment.colour_jitter)

    def __call__(self, model: PairVPR, batch: Batch) -> Tensor:
        """Mean squared error over hidden patches."""
        image, other = self.augment(batch).unbind(dim=1)
        mask = random_masks(batch.keys[:, 0], (image.shape[-1] // PATCH) * (image.shape[-2] // PATCH), self.mask_ratio)
        _, x = model.encoder(image, mask)
        _, y = model.encoder(other)
        predicted = model.pixel_head(model.decoder(x, y, with_class_token=False))
        errors = (predicted.float() - normalised(patchify(image))).square().mean(dim=-1)
        return (errors * mask).sum() / mask.sum()


class Stage2Loss:
    """Descriptor loss plus the score of every image with its hardest positive and its hardest negative."""

    def __init__(self, config: Stage2Config) -> None:
        self.pair_weight = config.objective.pair_loss_weight
        self.augment = DeviceAugment(config.data.augment.colour_jitter)
        self.descriptor_loss = build_loss(config.objective.descriptor_loss)
        miner = config.objective.descriptor_miner
        self.descriptor_miner = build_miner(miner) if miner else None
        self.pair_miner = BatchHardMiner()

    def __call__(self, model: PairVPR, batch: Batch) -> Tensor:
        """Both losses, the pair loss with the weight that it has after its warm-up."""
        described = model.describe(self.augment(batch).flatten(0, 1))
        labels = batch.places.repeat_interleave(batch.images.shape[1])
        mined = None if self.descriptor_miner is None else self.descriptor_miner(described.descriptors, labels)
        descriptor_loss = self.descriptor_loss(described.descriptors, labels, mined)
        anchors, positives, negatives = (
            described.dense.index_select(0, rows) for rows in self.pair_miner(described.descriptors, labels)
        )
        same, other = model.score_pairs(anchors, positives), model.score_pairs(anchors, negatives)
        of_same = F.binary_cross_entropy_with_logits(same, torch.ones_like(same))
        of_other = F.binary_cross_entropy_with_logits(other, torch.zeros_like(other))
        return descriptor_loss + self.pair_weight * (of_same + of_other) / 2
