"""Stage 1: siamese masked image modelling (He et al. 2022; Weinzaepfel et al. 2022).

Contract: of each pair, the first view is hidden but for a tenth of its patches and is predicted from the rest of it
and from the second view. The loss is the mean squared error on hidden patches only, against normalised patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pairvpr_dist.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, DeviceAugment, random_masks
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.models.patches import normalised, patchify, take_rows, unpatchify
from pairvpr_dist.objectives.base import Metrics, Objective
from pairvpr_dist.settings import PATCH, AugmentConfig, MaskedModellingConfig

PICTURED = 6  # places in a picture


class MaskedModelling(Objective):
    """Reconstruct the hidden part of one view with the help of the other."""

    untrained = ("decoder.class_token", "descriptor_head", "pair_head")
    validated = ("loss", "cross_view_gain")

    def __init__(
        self, model: PairVPR, config: MaskedModellingConfig, augment: AugmentConfig, datasets: Sequence[str]
    ) -> None:
        super().__init__(model, datasets)
        self.config = config
        if config.drop_hidden:  # then its place is above the encoder's blocks, frozen or not
            model.encoder.mask_token.requires_grad_(True)
            model.encoder.fills = True
        self.augment = DeviceAugment(augment.colour_jitter, augment.blur)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Loss over the hidden patches of the first views; see `Objective`."""
        losses = self.losses(*self.views(batch))
        return losses.mean(), self.loss_per_dataset(losses, batch.datasets)

    def views(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """First view (P, 3, H, W), second view, and the first view's mask (P, N), true = hidden."""
        with torch.no_grad():
            image, other = self.augment(batch).unbind(dim=1)
        patches = (image.shape[-1] // PATCH) * (image.shape[-2] // PATCH)
        return image, other, random_masks(batch.keys[:, 0], patches, self.config.mask_ratio)

    def predict(self, image: Tensor, other: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (P, M, 588) of the hidden patches, and their rows (P, M)."""
        hidden = int(self.config.mask_ratio * mask.shape[1])  # as `random_masks` counts; to look would be to wait
        return self.model.reconstruct_hidden(image, mask, other, hidden, drop=self.config.drop_hidden)

    def losses(self, image: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error (P,) over each place's hidden patches; all places hide equally many."""
        predicted, rows = self.predict(image, other, mask)
        target = normalised(take_rows(patchify(image), rows))
        return (predicted.float() - target).square().mean(dim=(1, 2))

    @torch.no_grad()
    def validate(self, batch: Batch, step: int) -> Metrics:
        """Loss, and the cross-view gain: loss with another place's second view minus loss with the right one."""
        image, other, mask = self.views(batch)
        right = self.losses(image, other, mask).mean()
        wrong = self.losses(image, other.roll(1, dims=0), mask).mean()
        return {"loss": right, "cross_view_gain": wrong - right}

    @torch.no_grad()
    def picture(self, batch: Batch) -> Tensor:
        """One row a place: the first view as the model sees it, its prediction, the first view, the second view."""
        image, other, mask = (t[:PICTURED] for t in self.views(batch))
        predicted, rows = self.predict(image, other, mask)
        patches = patchify(image)
        variance, mean = torch.var_mean(take_rows(patches, rows), dim=-1, keepdim=True)
        places = rows.unsqueeze(-1).expand_as(predicted)
        seen = patches.masked_fill(mask.unsqueeze(-1), 0)
        filled = patches.scatter(1, places, predicted.float() * variance.sqrt() + mean)
        grid = (image.shape[-2] // PATCH, image.shape[-1] // PATCH)
        columns = [unpatchify(seen, grid), unpatchify(filled, grid), image, other]
        return _to_uint8(torch.cat(columns, dim=-1)).permute(1, 0, 2, 3).flatten(1, 2)


def _to_uint8(images: Tensor) -> Tensor:
    """Normalised images (B, 3, H, W) back to uint8."""
    mean, std = (images.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
