"""SUP-VPR's stage 2: a contrastive loss of the descriptor plus a loss that tells cities apart.

Contract: exact at any number of ranks. Descriptors and embeddings are gathered with gradient, so that losses and the
miner see the whole batch on every rank. The descriptor learns from all places, in images with colour distortion and
blur. Cities are learnt from places whose city is known, in images as they are: every image asks once, its counterpart
is the next image of its place, and it attends to that and to mined images of other cities, which it is then told from.
What the method leaves open and how it is decided here: docs/supvpr.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pairvpr_dist.data.augmentation import DeviceAugment, normalise
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.data.randomness import Purpose, fold, keyed_bits
from pairvpr_dist.distributed import gather, gather_with_gradient, rank, world_size
from pairvpr_dist.models.pair_vpr import PairVPR, unit_length
from pairvpr_dist.objectives.base import Metrics, Objective
from pairvpr_dist.objectives.named_losses import build_loss, build_miner
from pairvpr_dist.settings import AugmentConfig, CityRecognitionConfig

UNKNOWN = -1  # a city


class Negatives(NamedTuple):
    """Images of other cities for each of B images."""

    rows: Tensor  # (B, K) int64: of the M images; of no meaning where there are none left
    found: Tensor  # (B, K) bool


def mine_negatives(distance: Tensor, foreign: Tensor, count: int) -> Negatives:
    """The `count` images of smallest `distance` (B, M) of those that are `foreign` (B, M) bool; the first of equals."""
    order = distance.masked_fill(~foreign, float("inf")).argsort(dim=1, stable=True)[:, :count]
    return Negatives(order, foreign.gather(1, order))


def own_similarity(similarity: Tensor, cities: Tensor) -> Tensor:
    """Mean similarity of two images of one city, for the city of each image (M,).

    similarity: (M, M) of unit vectors. An image with itself is left out; a city of a single image has 0.
    """
    same = (cities[:, None] == cities).to(similarity.dtype).fill_diagonal_(0)
    sums, counts = ((same * values).sum(dim=1) for values in (similarity, torch.ones_like(similarity)))
    members = (cities[:, None] == cities).to(similarity.dtype)  # sums of an image's own row to those of its city
    return (members @ sums) / (members @ counts).clamp(min=1)


class CityRecognition(Objective):
    """Descriptor within cities and attention between them, trained together (SUP-VPR, eq. 4)."""

    untrained = ("encoder.mask_token",)
    validated = ("loss", "loss/descriptor", "loss/city", "city_accuracy")

    def __init__(
        self, model: PairVPR, config: CityRecognitionConfig, augment: AugmentConfig, datasets: Sequence[str]
    ) -> None:
        super().__init__(model, datasets)
        self.config = config
        self.augment = DeviceAugment(augment.colour_jitter, augment.blur)
        self.descriptor_loss = build_loss(config.descriptor_loss)
        self.descriptor_miner = build_miner(config.descriptor_miner) if config.descriptor_miner else None

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Both losses over the global batch; see `Objective`. That between cities is also told for each data set."""
        loss, metrics, city_losses, known = self._losses(batch)
        datasets = batch.datasets.repeat_interleave(batch.images.shape[1])
        return loss, metrics | self.loss_per_dataset(city_losses, datasets, "loss/city", known)

    @torch.no_grad()
    def validate(self, batch: Batch, step: int) -> Metrics:
        """The same losses; see `Objective`."""
        loss, metrics, _, _ = self._losses(batch)
        return {"loss": loss} | metrics

    def _losses(self, batch: Batch) -> tuple[Tensor, Metrics, Tensor, Tensor]:
        """Loss, metrics, and of each of the rank's images (A,) its loss between cities and whether that counts."""
        with torch.no_grad():
            distorted = self.augment(batch).flatten(0, 1)
            plain = normalise(batch.images).flatten(0, 1)
        descriptors = gather_with_gradient(self._in_chunks(self._descriptors, distorted))
        labels = gather(batch.places.repeat_interleave(batch.images.shape[1]))
        mined = None if self.descriptor_miner is None else self.descriptor_miner(descriptors, labels)
        descriptor_loss = self.descriptor_loss(descriptors, labels, mined)

        city_losses, right, known = self._between_cities(self._in_chunks(self._embeddings, plain), batch)
        count = gather(known).sum()
        # Averaged over ranks, as ZeRO does, this is the mean over the images of the whole batch that count.
        shares = known * world_size() / count.clamp(min=1)
        city_loss = (city_losses * shares).sum()
        nothing = torch.where(count > 0, 0.0, float("nan"))  # to be told of cities, where there are none
        metrics = {
            "loss/descriptor": descriptor_loss.detach(),
            "loss/city": city_loss.detach() + nothing,
            "city_accuracy": (right * shares).sum() + nothing,
        }
        return descriptor_loss + self.config.city_loss_weight * city_loss, metrics, city_losses, known

    def _between_cities(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each of the rank's images (A,): InfoNCE (eq. 3), whether its counterpart won, and whether it counts."""
        views = batch.images.shape[1]
        images = len(embeddings)
        table = gather_with_gradient(embeddings)
        unit = unit_length(table)
        own = torch.arange(rank() * images, (rank() + 1) * images, device=table.device)
        counterparts = own - own % views + (own + 1) % views
        negatives = self._mine(unit.detach(), batch, own)

        rows = torch.cat([counterparts[:, None], negatives.rows], dim=1)  # (A, 1 + K)
        seen = F.pad(negatives.found, (1, 0), value=True)
        asked = self.model.among_cities(embeddings, table[rows], seen)
        logits = torch.einsum("ac,akc->ak", asked, unit[rows]) / self.config.temperature
        logits = logits.masked_fill(~seen, float("-inf"))
        losses = F.cross_entropy(logits, torch.zeros_like(own), reduction="none")
        known = negatives.found.any(dim=1)
        return losses, (logits.argmax(dim=1) == 0).float(), known

    def _mine(self, unit: Tensor, batch: Batch, own: Tensor) -> Negatives:
        """Images of other cities for the rank's images; none for and of places without a city."""
        cities = gather(batch.cities.repeat_interleave(batch.images.shape[1]))
        foreign = (cities[own, None] != cities) & (cities[own, None] != UNKNOWN) & (cities != UNKNOWN)
        if self.config.mining == "random":
            drawn = keyed_bits(fold(batch.keys.flatten(), Purpose.NEGATIVES), len(cities))
            return mine_negatives((drawn >> 11).double(), foreign, self.config.negatives)
        similarity = unit @ unit.T
        distance = (similarity[own] - own_similarity(similarity, cities)[own, None]).abs()
        return mine_negatives(distance, foreign, self.config.negatives)

    def _descriptors(self, images: Tensor) -> Tensor:
        return self.model.describe(images, recompute=self.config.chunks > 1).descriptors

    def _embeddings(self, images: Tensor) -> Tensor:
        return self.model.embed(images, recompute=self.config.chunks > 1)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return torch.cat([function(part) for part in images.chunk(self.config.chunks)])
