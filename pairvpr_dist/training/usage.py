"""What a rank uses of its machine: memory, and the time that it waits for data; the peak of its GPU.

Contract: asked once for each line of the log, never in a step. `usage_over_ranks` is collective.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import psutil
import torch

from pairvpr_dist.costs.hardware import peak_flops
from pairvpr_dist.distributed import gather

GIB = 2**30


@dataclass
class Usage:
    """Of one rank, since the last line of the log."""

    waited: float  # share of the time that went by until batches were there
    host: float  # GiB of memory of the process
    allocated: float  # GiB of GPU memory at most in tensors; 0 without a GPU
    reserved: float  # GiB of GPU memory at most held from the driver; 0 without a GPU


def own_usage(waited: float) -> Usage:
    """Of this rank. The peaks of the GPU start again."""
    host = psutil.Process().memory_info().rss / GIB
    if not torch.cuda.is_available():
        return Usage(waited, host, 0.0, 0.0)
    peaks = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
    torch.cuda.reset_peak_memory_stats()
    return Usage(waited, host, *peaks)


def usage_over_ranks(own: Usage, device: torch.device) -> dict[str, float]:
    """What a line of the log says of all ranks: of memory the largest, of waiting the mean and the worst."""
    ranks = gather(torch.tensor([astuple(own)], device=device))
    worst = Usage(*ranks.amax(dim=0).tolist())
    line = {
        "data_wait_share": float(ranks[:, 0].mean()),
        "data_wait_share_worst": worst.waited,
        "host_memory_gib": worst.host,
    }
    if torch.cuda.is_available():
        line |= {"gpu_memory_allocated_gib": worst.allocated, "gpu_memory_reserved_gib": worst.reserved}
    return line


def own_peak_flops() -> float | None:
    """Operations a second of this rank's GPU at most; None without a GPU, or for one that is not known."""
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
