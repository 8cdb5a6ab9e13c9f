"""Pair scores for re-ranking: `PairVPR.similarity` of one query with many candidates, without computing anything twice.

Contract: inference only, on a copy of the decoder's weights as they are when it is made. Scores equal
`model.similarity` within rounding, for any number of candidates at once. What is saved:

* projections are made once per image (`project`), not once per pair;
* the query's keys and values of all layers, where it is the second view, and its first self-attention and first
  cross-attention queries, where it is the first view, are made once per query (`query`);
* the class token alone is scored, so that nothing else is computed in the last layer. One token's attention needs no
  keys and values: q (W t) = (q W) t lets the token's query look at the normalised tokens themselves;
* the normalisation of a second view is the same in all layers but for its scale and shift, which go into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairvpr_dist.errors import UserError
from pairvpr_dist.models.decoder import EPS, DecoderBlock
from pairvpr_dist.models.pair_vpr import PairVPR

CPU_TOKENS = 2048  # of the candidates scored at once on a CPU: more gain nothing and leave its caches
GPU_PAIRS = 256  # at once on a GPU: more gain nothing
FREE_SHARE = 0.5  # of a GPU's free memory that pairs may take


@dataclass
class Query:
    """What all pairs of one image share. N patches, D the decoder's width, H its heads of width d."""

    first: Tensor  # (1, 1 + N, D) as first view, after the first self-attention; the class token alone at depth 1
    asked: Tensor  # (1, H, 1 + N, d) queries of the first cross-attention
    keys_values: list[tuple[Tensor, Tensor]]  # as second view: (1, H, N, d) each, of all layers but the last
    normalised: Tensor  # (1, N, D) as second view in the last layer


def require_pair_classifier(model: PairVPR, asked: str) -> None:
    """Raise `UserError` for a SUP-VPR model, which tells cities apart and scores no pairs. `asked`: who wants them."""
    if model.config.city_blocks:
        raise UserError(
            f"{asked}: a SUP-VPR model has no pair classifier; measure it with pairvpr eval --protocol cities, or name "
            "a Pair-VPR model"
        )


class PairScorer:
    """Scores pairs of projected images with matrix products in `dtype`; sums, norms and scores are fp32.

    Raises `UserError` for a model without pair classifier.
    """

    def __init__(self, model: PairVPR, dtype: torch.dtype = torch.float32) -> None:
        require_pair_classifier(model, "scoring pairs")
        self.decoder = model.decoder
        self.head = model.pair_head
        self.dtype = dtype
        with torch.no_grad():
            self.layers = [_Layer(block, dtype) for block in model.decoder.blocks]  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.class_token.device

    @torch.inference_mode()
    def project(self, dense: Tensor) -> Tensor:
        """Dense features (B, N, C) of the encoder as pairs take them: (B, N, D), see `Decoder.project`."""
        return self.decoder.project(dense.to(self.decoder.embed.weight.dtype))

    @torch.inference_mode()
    def query(self, projected: Tensor) -> Query:
        """What the pairs of one image share, from its projected features (N, D)."""
        y = projected[None].float()
        x = self._with_class_token(y)
        *others, last = self.layers
        first = self.layers[0].self_attention(x) if others else last.class_self_attention(x)
        normalised = self._normalised(y)
        return Query(
            first, self.layers[0].asked(first), [layer.keys_values(normalised) for layer in others], normalised
        )

    @torch.inference_mode()
    def scores(self, query: Query, candidates: Tensor) -> Tensor:
        """Scores (B,) fp32 of the query with projected candidates (B, N, D), both orders summed."""
        candidates = candidates.float()
        return self._query_first(query, candidates) + self._candidates_first(query, candidates)

    def pairs_at_once(self, patches: int) -> int:
        """How many candidates of so many patches `scores` best takes at once: by the free memory of a GPU."""
        if self.device.type == "cpu":
            return max(1, CPU_TOKENS // patches)
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return pairs_that_fit(free + kept, pair_bytes(patches, self.decoder.pos_embed.shape[1], self.dtype))

    def _query_first(self, query: Query, candidates: Tensor) -> Tensor:
        x = query.first.expand(len(candidates), -1, -1)
        y = self._normalised(candidates)
        *others, last = self.layers
        for number, layer in enumerate(others):
            if number > 0:
                x = layer.self_attention(x)
            asked = layer.asked(x) if number > 0 else query.asked.expand(len(y), -1, -1, -1)
            x = layer.mlp(layer.cross_attention(x, asked, *layer.keys_values(y)))
        class_token = last.class_self_attention(x) if others else x
        return self._score(last, class_token, y)

    def _candidates_first(self, query: Query, candidates: Tensor) -> Tensor:
        x = self._with_class_token(candidates)
        *others, last = self.layers
        for layer, (keys, values) in zip(others, query.keys_values, strict=True):
            x = layer.self_attention(x)
            x = layer.mlp(layer.shared_cross_attention(x, keys, values))
        return self._score(last, last.class_self_attention(x), query.normalised.expand(len(x), -1, -1))

    def _score(self, last: _Layer, class_token: Tensor, y: Tensor) -> Tensor:
        """The class token (B, 1, D) through what is left of the last layer, and its head."""
        class_token = last.mlp(last.class_cross_attention(class_token, y))
        return self.head(self.decoder.norm(class_token)).flatten().float()

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.decoder.class_token.expand(len(tokens), -1, -1), tokens], dim=1)

    def _normalised(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], eps=EPS).to(self.dtype)


def pair_bytes(patches: int, width: int, dtype: torch.dtype) -> int:
    """What one pair takes at most while its MLP runs, where `scores` takes most. Pure."""
    whole = 2 + 4 + 4 + 4 + 4  # candidates as they came and in fp32; tokens, the same normalised, and the new ones
    products = 1 + 1 + 4 + 4 + 1  # second view; first view normalised; hidden, before and after; what is added
    return (1 + patches) * width * (whole + products * dtype.itemsize)


def pairs_that_fit(free: int, taken: int) -> int:
    """Candidates scored at once with `free` bytes of a GPU, of which each takes `taken`. Pure."""
    return max(1, min(GPU_PAIRS, int(FREE_SHARE * free / taken)))


class _Layer:
    """A block of the decoder in parts. Tokens x are (B, N, D) fp32; second views y are normalised, in `dtype`."""

    def __init__(self, block: DecoderBlock, dtype: torch.dtype) -> None:
        cross = block.cross_attn
        self.heads, self.dtype = cross.heads, dtype
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.qkv = _Linear.like(block.attn.qkv, dtype)
        self.self_proj = _Linear.like(block.attn.proj, dtype)
        self.cross_q = _Linear.like(cross.q, dtype)
        weight = torch.cat([cross.k.weight, cross.v.weight])
        bias = torch.cat([cross.k.bias, cross.v.bias]) + weight @ block.norm_y.bias
        self.cross_kv = _Linear(weight * block.norm_y.weight, bias, dtype)
        self.cross_proj = _Linear.like(cross.proj, dtype)
        self.fc1 = _Linear.like(block.mlp.fc1, dtype)
        self.fc2 = _Linear.like(block.mlp.fc2, dtype)

    def self_attention(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(t) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        return x + self.self_proj(_join(F.scaled_dot_product_attention(q, k, v)))

    def asked(self, x: Tensor) -> Tensor:
        """Queries (B, H, N, d) of the cross-attention."""
        return self._split(self.cross_q(self.norm2(x)))

    def keys_values(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the cross-attention, (B, H, N, d) each."""
        keys, values = self.cross_kv(y).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def cross_attention(self, x: Tensor, asked: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return x + self.cross_proj(_join(F.scaled_dot_product_attention(asked, keys, values)))

    def shared_cross_attention(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Cross-attention of all x to one y: one long sequence of queries, without a copy of keys and values."""
        asked = self._split(self.cross_q(self.norm2(x)).flatten(0, 1)[None])
        return x + self.cross_proj(_join(F.scaled_dot_product_attention(asked, keys, values)).view_as(x))

    def mlp(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm3(x))))

    def class_self_attention(self, x: Tensor) -> Tensor:
        """The class token (B, 1, D) after its self-attention, x's first token."""
        normalised = self.norm1(x).to(self.dtype)
        of_q, of_k, of_v = self.qkv.weight.chunk(3)
        q_bias, _, v_bias = self.qkv.bias.chunk(3)
        looked = self._look(F.linear(normalised[:, 0], of_q, q_bias), of_k, of_v, v_bias, normalised)
        return x[:, :1] + self.self_proj(looked)

    def class_cross_attention(self, class_token: Tensor, y: Tensor) -> Tensor:
        """The class token (B, 1, D) after its cross-attention to y."""
        asked = self.cross_q(self.norm2(class_token))[:, 0]
        of_k, of_v = self.cross_kv.weight.chunk(2)
        return class_token + self.cross_proj(self._look(asked, of_k, of_v, self.cross_kv.bias.chunk(2)[1], y))

    def _look(self, asked: Tensor, of_k: Tensor, of_v: Tensor, v_bias: Tensor, tokens: Tensor) -> Tensor:
        """Attention (B, 1, D) of one query a pair (B, D), its keys' and values' weights (D, D), to tokens (B, N, D).

        The keys' bias adds the same to all logits of a head, so it drops out.
        """
        asked, of_k, of_v = (t.unflatten(d, (self.heads, -1)) for t, d in ((asked, 1), (of_k, 0), (of_v, 0)))
        wanted = torch.einsum("bhd,hdc->bhc", asked, of_k) * asked.shape[-1] ** -0.5
        shares = (wanted @ tokens.transpose(1, 2)).float().softmax(dim=-1).to(self.dtype)
        return (torch.einsum("bhc,hdc->bhd", shares @ tokens, of_v).flatten(1) + v_bias)[:, None]

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Linear:
    """A linear layer in `dtype`, on a CPU in the layout of oneDNN, whose fp32 product is faster than `F.linear`'s."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype)
        one_dnn = weight.device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight) if one_dnn else None

    @classmethod
    def like(cls, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> _Linear:
        """The same layer in `dtype`."""
        assert layer.bias is not None
        return cls(layer.weight, layer.bias, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def _join(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)
