"""DeepSpeed's configuration of a run: a pure function, without DeepSpeed, which is slow to import.

Contract: every DeepSpeed default that changes training is set explicitly.
"""

from __future__ import annotations

from typing import Any

import torch

from pairvpr_dist.costs.compilation import compiled_on
from pairvpr_dist.costs.zero import BUCKET, SMALL
from pairvpr_dist.settings import TrainingConfig


def uses_bf16(config: TrainingConfig) -> bool:
    """bf16 where asked for, or on a GPU when the precision is left to us."""
    return config.train.precision == "bf16" or (config.train.precision == "auto" and torch.cuda.is_available())


def compiled_blocks(config: TrainingConfig) -> str:
    """What `train.compile` comes to on this machine: none, blocks or graphs."""
    return compiled_on(config, torch.cuda.is_available())


def deepspeed_config(config: TrainingConfig, bf16: bool, world: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run. Pure."""
    zero, parts = config.train.zero_stage, config.train.accumulate
    sums = "fp32" if bf16 and parts > 1 else None  # of the parts' gradients
    return {
        "train_micro_batch_size_per_gpu": config.data.places_per_batch // world // parts,
        "gradient_accumulation_steps": parts,
        "gradient_clipping": config.optim.clip_grad_norm,  # DeepSpeed's own default is 1.0
        "zero_optimization": {
            "stage": zero,
            "contiguous_gradients": True,
            "overlap_comm": torch.cuda.is_available(),
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": SMALL,
        },
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "fp16": {"enabled": False},
        "data_types": {"grad_accum_dtype": sums},
        "communication_data_type": "fp32",  # gradients would travel in bf16
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
