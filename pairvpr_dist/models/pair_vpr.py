"""`PairVPR`: encoder, decoder and heads of both stages in one module; the public face of the package.

Contract: parameters are touched only inside the `forward` of the submodule that owns them, so that the methods work
under ZeRO-3. Exports are `model.safetensors`, `config.json` and a model card, loaded strictly: a missing or unknown
key is an error that lists it. With `city_blocks` it is SUP-VPR, whose head stands in place of decoder and heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pairvpr_dist.config import to_dict
from pairvpr_dist.files import new_folder, write_json, write_text
from pairvpr_dist.models.blocks import BlockRunner
from pairvpr_dist.models.card import model_card
from pairvpr_dist.models.city_head import CityHead
from pairvpr_dist.models.decoder import Decoder
from pairvpr_dist.models.encoder import Encoder, preset
from pairvpr_dist.models.patches import hidden_first, take_rows
from pairvpr_dist.models.weights import load_model_state, read_model_file
from pairvpr_dist.settings import PATCH, ModelConfig


@dataclass
class Description:
    """What `describe` gives for B images."""

    descriptors: Tensor  # (B, D) fp32, L2-normalised
    dense: Tensor  # (B, N, C) patch tokens; of SUP-VPR (B, 1, C), the image's embedding


class PairVPR(nn.Module):
    """Place recognition in two steps: a descriptor finds candidates, the decoder scores (query, candidate) pairs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.frozen_blocks)
        if config.city_blocks:
            self.city_head = CityHead(
                preset(config.encoder), config.fused_depths, config.descriptor_dim, config.city_blocks
            )
            return
        self.decoder = Decoder(
            self.encoder.dim, config.decoder_dim, config.decoder_depth, config.decoder_heads, config.image_size // PATCH
        )
        self.pixel_head = nn.Linear(config.decoder_dim, 3 * PATCH * PATCH)
        self.descriptor_head = nn.Linear(self.encoder.dim, config.descriptor_dim)
        self.pair_head = nn.Sequential(
            nn.Linear(config.decoder_dim, config.pair_hidden_dim), nn.ReLU(), nn.Linear(config.pair_hidden_dim, 1)
        )

    def run_blocks(self, checkpointing: str, compiled: str = "none") -> None:
        """Let transformer blocks run so from now on; see `BlockRunner`."""
        self.encoder.run_block = BlockRunner(checkpointing, compiled)
        if not self.config.city_blocks:
            self.decoder.run_block = self.encoder.run_block

    def describe(self, images: Tensor, *, recompute: bool = False) -> Description:
        """Descriptor and dense features of normalised images (B, 3, S, S), S a multiple of 14.

        `recompute`: see `Encoder`. Raises `ValueError` for images that are not square: the decoder knows dense features
        by their number alone.
        """
        if images.shape[-1] != images.shape[-2]:
            raise ValueError(f"images of {tuple(images.shape)} are not square; resize them first")
        if self.config.city_blocks:
            tokens = self.encoder(images, recompute=recompute, depths=self.config.fused_depths)[1]
            last = tokens if self.config.fused_depths == 1 else tokens[:, -1]
            tokens = tokens.reshape(len(images), self.config.fused_depths, *last.shape[1:])
            return Description(unit_length(self.city_head.fusion(tokens)), self.city_head.embed(last).unsqueeze(1))
        class_token, dense = self.encoder(images, recompute=recompute)
        return Description(unit_length(self.descriptor_head(class_token)), dense)

    def score_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (B,) that x and y show one place, from dense features (B, N, C). Not symmetric: x is updated."""
        return self.pair_head(self.decoder(x, y, with_class_token=True)[:, 0]).squeeze(-1).float()

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """The pair score (B,) of the paper: both orders summed."""
        return self.score_pairs(x, y) + self.score_pairs(y, x)

    def embed(self, images: Tensor, *, recompute: bool = False) -> Tensor:
        """SUP-VPR's embeddings (B, C) of normalised images (B, 3, S, S), by which cities are told apart."""
        return self.city_head.embed(self.encoder(images, recompute=recompute)[1])

    def among_cities(self, embeddings: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """SUP-VPR's embeddings (B, C) after attention to those of `context` (B, M, C); see `CityAttention`.

        Returns them L2-normalised, to be compared with normalised embeddings of the database.
        """
        return unit_length(self.city_head.attention(embeddings, context, seen))

    def reconstruct(self, image: Tensor, mask: Tensor, other: Tensor) -> Tensor:
        """Predict the hidden patches of `image` from the rest of it and from `other` (stage 1).

        image, other: (B, 3, H, W) normalised; mask: (B, N) bool, true = hidden. Returns (B, N, 588) normalised pixels.
        """
        _, tokens = self.encoder(torch.cat([image, other]), torch.cat([mask, torch.zeros_like(mask)]))
        x, y = tokens.chunk(2)
        return self.pixel_head(self.decoder(x, y, with_class_token=False))

    def reconstruct_hidden(
        self, image: Tensor, mask: Tensor, other: Tensor, hidden: int, *, drop: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The same of hidden patches alone, of which each mask has `hidden`. `drop`: the encoder does not see them.

        Returns (B, hidden, 588) normalised pixels and the patches' rows (B, hidden), ascending.
        """
        order = hidden_first(mask)
        if drop:
            x, y = self.encoder(image, visible=order[:, hidden:])[1], self.encoder(other)[1]
        else:
            x, y = self.encoder(torch.cat([image, other]), torch.cat([mask, torch.zeros_like(mask)]))[1].chunk(2)
        rows = order[:, :hidden]
        return self.pixel_head(take_rows(self.decoder(x, y, with_class_token=False), rows)), rows

    @classmethod
    def from_pretrained(cls, path: str | Path) -> PairVPR:
        """Load an export folder, or a Pair-VPR .pth as its authors released it.

        Raises `UserError` when the file is of another kind, or lists the keys that are missing or unknown.
        """
        config, state = read_model_file(Path(path))
        model = cls(config)
        load_model_state(model, state, Path(path))
        return model.eval()

    def save_pretrained(self, folder: str | Path, facts: dict[str, Any] | None = None) -> None:
        """Write an export folder. `facts` (stage, data, licence, metrics, commit) goes into the model card."""
        state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_export(Path(folder), self.config, state, facts or {})


def unit_length(vectors: Tensor) -> Tensor:
    """L2-normalise (..., D) in fp32. Any finite input has a finite result and gradient.

    Squares of numbers above 1e19 or below 1e-23 leave fp32, so vectors are first scaled by their largest number, which
    changes nothing, its gradient included. Below 1e-6 they come out shorter than 1, and zero stays zero.
    """
    vectors = vectors.float()
    scaled = vectors / vectors.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1e-6)
    return F.normalize(scaled, dim=-1, eps=1.0)


def write_export(folder: Path, config: ModelConfig, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write an export folder from a state that was gathered elsewhere (fp32 tensors on the CPU)."""
    with new_folder(folder) as aside:
        save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
        write_json(aside / "config.json", {"format": "pairvpr-export/1", "model": to_dict(config), "facts": facts})
        write_text(aside / "README.md", model_card(config, facts, sum(t.numel() for t in state.values())))
