"""The sizes that we give DeepSpeed's ZeRO, and those that are its own; memory and traffic follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the model is slow to import, and DeepSpeed's configuration needs the sizes alone
    from pairvpr_dist.costs.layers import Layer

BUCKET = 50_000_000  # numbers per bucket of gradient reduction and parameter gathering
SMALL = 100_000  # numbers; ZeRO-3 keeps smaller parameters whole on every rank
WHOLE = 500_000_000  # numbers at most that DeepSpeed's engine reduces at once, without ZeRO
REUSE = 1_000_000_000  # DeepSpeed's stage3_max_reuse_distance: weights that come again within so many numbers stay


def gathered_forward(layers: Sequence[Layer]) -> Iterator[tuple[Layer, int]]:
    """Each layer, and how often ZeRO-3 gathers its weights in a forward pass.

    Encoder, decoder and heads each run through all their parts of the batch before the next one begins. What runs
    several times is gathered each time where its weights are `REUSE` numbers or more.
    """
    sizes: Counter[str] = Counter()
    for layer in layers:
        sizes[layer.name.split(".")[0]] += layer.parameters
    for layer in layers:
        yield layer, layer.runs if sizes[layer.name.split(".")[0]] >= REUSE else 1


def gathered_again(layers: Sequence[Layer]) -> Iterator[tuple[Layer, bool]]:
    """Each layer, and whether ZeRO-3 gathers its weights again for the backward pass.

    It does where the weights of the layers between its forward and its backward pass are `REUSE` numbers or more.
    """
    between = 0
    for layer in reversed(layers):
        yield layer, layer.trained and between >= REUSE
        between += layer.parameters * (1 + layer.trained)
