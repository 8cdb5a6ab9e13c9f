"""What each layer of a stage costs for a place of the batch: pure functions of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from pairvpr_dist.settings import TrainingConfig


@dataclass(frozen=True)
class Layer:
    """One layer of a step, in the order of the forward pass. Operations are FLOPs for each place of the batch.

    All images and pairs of a place are in them. `recomputed` comes on top where `train.checkpointing` or
    `objective.chunks` lets the backward pass compute activations again; it is no work of the model.
    """

    name: str  # encoder.embed, encoder.blocks.0, decoder.embed, decoder.blocks.0, pixel_head, ...
    parameters: int  # numbers
    trained: bool
    forward: float
    backward: float  # of the gradients alone; 0 where it is frozen
    recomputed: float


def layers(config: TrainingConfig) -> list[Layer]:
    """The layers of a stage."""
    raise NotImplementedError
