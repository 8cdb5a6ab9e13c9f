"""GPUs and what connects them: the table `configs/hardware.yaml`, and what users add to it.

Contract: figures of data sheets, each with where it is from. Rates are bytes a second in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU in a cluster that is usual for it."""

    name: str  # as in --gpu: h200, a100-80
    driver_names: tuple[str, ...]  # sets of words, one of which is in the name that the driver gives it
    flops: float  # dense bf16 products with accumulation in fp32, a second, at most
    memory: float  # bytes that a process can have
    memory_rate: float  # of its own memory
    link_rate: float  # to the other GPUs of its machine
    network_rate: float  # to GPUs of other machines, its share of what the machine has
    gpus_per_node: int
    efficiency: float  # share of `flops` that a large product of matrices reaches
