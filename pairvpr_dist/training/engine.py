"""DeepSpeed around an objective, and the whole training state in and out of it.

Contract: every DeepSpeed default that changes training is set explicitly. `full_state` and `load_full_state` speak of
parameters by name and of whole fp32 tensors, so a state fits any ZeRO stage and any number of processes; what ZeRO
does not own (frozen parameters, buffers) is part of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import rank, world_size
from pairvpr_dist.objectives.base import Metrics, Objective
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.optimizer import build_optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET = 50_000_000  # numbers per bucket of gradient reduction and parameter gathering

for name in ("DeepSpeed", "deepspeed"):
    logging.getLogger(name).setLevel(logging.WARNING)


def uses_bf16(config: TrainingConfig) -> bool:
    """bf16 where asked for, or on a GPU when the precision is left to us."""
    return config.train.precision == "bf16" or (config.train.precision == "auto" and torch.cuda.is_available())


def deepspeed_config(config: TrainingConfig, bf16: bool, world: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run. Pure."""
    return {
        "train_micro_batch_size_per_gpu": config.data.places_per_batch // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip_grad_norm,  # DeepSpeed's own default is 1.0
        "zero_optimization": {
            "stage": config.train.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": torch.cuda.is_available(),
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": 100_000,
        },
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "fp16": {"enabled": False},
        "communication_data_type": "fp32",  # gradients would travel in bf16
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a whole value at ZeRO-3, which deals out equal parts and pads the last.

    DeepSpeed's own setter of whole values does not pad: it fails where the number of ranks does not divide them.
    """
    size = parameter.ds_tensor.numel()
    padded = F.pad(value.flatten(), (0, size * world_size() - value.numel()))
    return padded[rank() * size : (rank() + 1) * size]


@dataclass
class FullState:
    """Everything a run needs to go on, whole, on the CPU, fp32."""

    model: dict[str, Tensor]  # parameters and buffers of PairVPR
    moments: dict[str, Tensor]  # "exp_avg/<parameter>", "exp_avg_sq/<parameter>"
    updates: int  # optimizer steps taken


class Engine:
    """An objective under DeepSpeed."""

    def __init__(self, objective: Objective, config: TrainingConfig) -> None:
        bf16 = uses_bf16(config)
        model = objective.model
        # DeepSpeed rounds frozen parameters to bf16; the checkpoint keeps them as they came.
        frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        masters = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad} if bf16 else {}
        self._frozen = frozen if rank() == 0 else {}
        self._optimizer = build_optimizer(model, config.optim)
        self._plain_norm: Tensor | None = None
        self.engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=self._optimizer,
            config=deepspeed_config(config, bf16, world_size()),
        )
        self.objective: Objective = self.engine.module
        self._copies = self._fp32_copies()
        self._materialise_optimizer_state()
        for name, parameter in self._trained():
            if name in masters:
                self._set_fp32(parameter, masters[name].to(self.engine.device))

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self.engine.device

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, as `set_rates` writes them."""
        return self.engine.optimizer.param_groups

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Loss and metrics of this rank's batch at global step `step`."""
        return self.engine(batch, step)

    def step(self, loss: Tensor) -> bool:
        """Backward and update. False when the update was skipped for a gradient that is not finite."""
        self.engine.backward(loss)
        if self.engine.optimizer is self._optimizer:  # fp32 without ZeRO: DeepSpeed does not look at the gradient
            self._plain_norm = get_total_norm([p.grad for _, p in self._trained() if p.grad is not None])
            if not self._plain_norm.isfinite():
                self.engine.zero_grad()
                return False
        self.engine.step()
        return self.engine.was_step_applied()

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient before clipping; not finite when the update was skipped."""
        norm = self._plain_norm if self._plain_norm is not None else self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def full_state(self) -> FullState | None:
        """Gather the state; every rank must call. Rank 0 gets it, the others None."""
        model: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            values = {name: self._fp32(parameter)}
            values |= {f"{moment}/{name}": self._moment(parameter, moment) for moment in MOMENTS}
            if rank() == 0:
                model[name] = values.pop(name).detach().cpu().clone()
                moments |= {key: value.detach().cpu().clone() for key, value in values.items()}
        if rank() != 0:
            return None
        model |= {name: value.float().cpu() for name, value in self._frozen.items()}
        model |= {name: b.detach().float().cpu().clone() for name, b in self.objective.model.named_buffers()}
        return FullState(model, moments, self._updates())

    def load_full_state(self, state: FullState) -> None:
        """Write moments and masters back. The model's own weights must have been loaded before the engine was built."""
        for kept in self._optimizer.state.values():
            kept["step"].fill_(state.updates)
        for name, parameter in self._trained():
            value = state.model[name].to(self.engine.device)
            moments = {m: state.moments[f"{m}/{name}"].to(self.engine.device) for m in MOMENTS}
            self._set_fp32(parameter, value)
            for moment, tensor in moments.items():
                self._set_moment(parameter, tensor, moment)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.objective.model.named_parameters() if p.requires_grad]

    @staticmethod
    def _partitioned(parameter: nn.Parameter) -> bool:
        return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")

    def _fp32(self, parameter: nn.Parameter) -> Tensor:
        return safe_get_full_fp32_param(parameter) if self._partitioned(parameter) else self._updated(parameter)

    def _set_fp32(self, parameter: nn.Parameter, value: Tensor) -> None:
        if hasattr(parameter, "ds_id"):
            safe_set_local_fp32_param(parameter, own_part(parameter, value))
        elif self._partitioned(parameter):
            safe_set_full_fp32_param(parameter, value)
        else:
            self._updated(parameter).data.copy_(value)

    def _set_moment(self, parameter: nn.Parameter, value: Tensor, moment: str) -> None:
        if hasattr(parameter, "ds_id"):
            safe_set_local_optimizer_state(parameter, own_part(parameter, value), moment)
        elif self._partitioned(parameter):
            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            self._optimizer.state[self._updated(parameter)][moment].copy_(value)

    def _updated(self, parameter: nn.Parameter) -> Tensor:
        """What AdamW updates without ZeRO: the parameter itself, or in bf16 its fp32 copy."""
        return self._copies.get(parameter, parameter)

    def _fp32_copies(self) -> dict[nn.Parameter, Tensor]:
        wrapper = self.engine.optimizer
        if not hasattr(wrapper, "fp32_groups"):  # only DeepSpeed's optimizer for bf16 without ZeRO has them
            return {}
        return dict(zip(chain(*wrapper.fp16_groups), chain(*wrapper.fp32_groups), strict=True))

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._partitioned(parameter):
            return safe_get_full_optimizer_state(parameter, moment)
        return self._optimizer.state[self._updated(parameter)][moment]

    def _updates(self) -> int:
        return int(max(float(state["step"]) for state in self._optimizer.state.values()))

    def _flat_tensors(self) -> list[Tensor]:
        """The tensors that AdamW updates: ZeRO's flat fp32 partitions, or the parameters themselves."""
        if hasattr(self.engine.optimizer, "fp32_partitioned_groups_flat"):  # ZeRO-3
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self._optimizer.param_groups for tensor in group["params"]]

    def _materialise_optimizer_state(self) -> None:
        """Make AdamW's state now, as its first update would, and let ZeRO link parameters to it.

        Left to itself, ZeRO-1 and -2 link after the update of the first group, when the others have no state yet.
        """
        for tensor in self._flat_tensors():
            self._optimizer.state[tensor] = {
                "step": torch.zeros((), device=tensor.device),
                **{moment: torch.zeros_like(tensor.data) for moment in MOMENTS},
            }
        link = getattr(self.engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()
