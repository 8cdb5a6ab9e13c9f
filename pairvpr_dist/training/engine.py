"""DeepSpeed around an objective, and the training state in and out of it.

Contract: every DeepSpeed default that changes training is set explicitly. `part` and `load` speak of stretches of the
flattened fp32 parameters and moments by name, so what ranks have saved fits any ZeRO stage and any number of ranks;
what ZeRO does not own (frozen parameters, buffers) is part of it. Neither is collective: a rank gives what it holds.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import gather_to_rank_0, rank, world_size
from pairvpr_dist.objectives.base import Metrics, Objective, mean_of_parts
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import WEIGHT
from pairvpr_dist.training.deepspeed_config import compiled_blocks, deepspeed_config, uses_bf16
from pairvpr_dist.training.hangs import BACKWARD, FORWARD
from pairvpr_dist.training.optimizer import build_optimizer

LINEAR = nn.functional.linear
MOMENTS = ("exp_avg", "exp_avg_sq")

for name in ("DeepSpeed", "deepspeed"):
    logging.getLogger(name).setLevel(logging.WARNING)


def even_share(numbers: int, rank: int, world: int) -> range:
    """The stretch of a flattened tensor that a rank saves of what all of them hold whole. Pure."""
    return range(numbers * rank // world, numbers * (rank + 1) // world)


@dataclass
class Stretch:
    """Neighbouring numbers of a flattened tensor."""

    start: int
    values: Tensor  # (n,)


Part = dict[str, Stretch]  # "weight/<parameter or buffer>", "exp_avg/<parameter>", "exp_avg_sq/<parameter>"
Read = Callable[[str, int, int], Tensor]  # key, start, numbers -> fp32 on the CPU


class Engine:
    """An objective under DeepSpeed."""

    def __init__(self, objective: Objective, config: TrainingConfig) -> None:
        bf16 = uses_bf16(config)
        model = objective.model
        # DeepSpeed rounds frozen parameters to bf16; the checkpoint keeps them as they came.
        frozen = ((n, p) for n, p in model.named_parameters() if not p.requires_grad)
        self._constant = _shares(chain(frozen, model.named_buffers()))
        masters = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad} if bf16 else {}
        self._optimizer = build_optimizer(model, config.optim)
        self._plain_norm: Tensor | None = None
        self._parts = config.train.accumulate
        self._checkpointing, self._compiled = config.train.checkpointing, compiled_blocks(config)
        objective.model.run_blocks(self._checkpointing, self._compiled)
        nn.functional.linear = LINEAR  # an engine at ZeRO-3 leaves its own in torch, which adds the bias in place
        self.engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=self._optimizer,
            config=deepspeed_config(config, bf16, world_size()),
        )
        self.objective: Objective = self.engine.module
        self._copies = self._fp32_copies()
        self._materialise_optimizer_state()
        for name, parameter in self._trained() if masters else ():
            for held in self._held(parameter, {WEIGHT}).values():
                _overwrite(held, masters[name].flatten()[held.start : held.start + held.values.numel()])

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self.engine.device

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, as `set_rates` writes them."""
        return self.engine.optimizer.param_groups

    def train_on(
        self, batch: Batch, step: int, at: Callable[[str], None] = lambda phase: None
    ) -> tuple[Tensor, Metrics, bool]:
        """One step at global step `step`: loss and metrics of this rank's batch, on the device, and `step`'s answer.

        The batch passes in `train.accumulate` parts. `at`: told of FORWARD and BACKWARD before each of them begins.
        """
        losses: list[Tensor] = []
        found: list[Metrics] = []
        applied = False
        for part in batch.parts(self._parts):
            at(FORWARD)
            loss, metrics = self.forward(part, step)
            at(BACKWARD)
            losses.append(loss.detach())
            found.append(metrics)
            applied = self.step(loss)
        return torch.stack(losses).mean(), mean_of_parts(found), applied

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Loss and metrics of a part of this rank's batch at global step `step`."""
        if self._compiled == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        return self.engine(batch, step)

    def step(self, loss: Tensor) -> bool:
        """Backward and, after the last part of a batch, update.

        False when there was none, or when it was skipped for a gradient that is not finite.
        """
        self.engine.backward(loss)
        plain = self.engine.optimizer is self._optimizer  # fp32 without ZeRO: DeepSpeed does not look at the gradient
        if plain and self.engine.is_gradient_accumulation_boundary():
            self._plain_norm = get_total_norm([p.grad for _, p in self._trained() if p.grad is not None])
            if not self._plain_norm.isfinite():
                self.engine.zero_grad()
                self.engine.micro_steps += 1  # as `step` does
                return False
        self.engine.step()
        return self.engine.was_step_applied()

    def run_blocks(self, checkpointing: str, compiled: str) -> None:
        """Run transformer blocks so from now on; see `BlockRunner`."""
        self._checkpointing, self._compiled = checkpointing, compiled
        self.objective.model.run_blocks(checkpointing, compiled)

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Run transformer blocks as they are inside the `with`, so that hooks on their modules are called."""
        before = self._compiled
        self.run_blocks(self._checkpointing, "none")
        try:
            yield
        finally:
            self.run_blocks(self._checkpointing, before)

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient before clipping; not finite when the update was skipped."""
        norm = self._plain_norm if self._plain_norm is not None else self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def part(self) -> Part:
        """What this rank saves of the state: views of live tensors; over all ranks every number comes once."""
        part = dict(self._constant)
        for name, parameter in self._trained():
            for kind, held in self._held(parameter).items():
                stretch = held if self._is_divided(parameter) else _share(held.values)
                if stretch.values.numel():
                    part[f"{kind}/{name}"] = stretch
        return part

    def updates(self) -> int:
        """Updates done so far; a skipped step is none."""
        return int(max(float(state["step"]) for state in self._optimizer.state.values()))

    def load(self, read: Read, updates: int) -> None:
        """Write fp32 weights and moments back. The model must have had its weights before the engine was built."""
        for kept in self._optimizer.state.values():
            kept["step"].fill_(updates)
        for name, parameter in self._trained():
            for kind, held in self._held(parameter).items():
                _overwrite(held, read(f"{kind}/{name}", held.start, held.values.numel()))

    def full_weights(self) -> dict[str, Tensor] | None:
        """Whole fp32 weights and buffers on the CPU of rank 0, None elsewhere; every rank must call."""
        own = {  # clones, because a view is pickled with all that it is a view of
            key: Stretch(s.start, s.values.detach().cpu().clone())
            for key, s in self.part().items()
            if key.startswith(WEIGHT)
        }
        parts = gather_to_rank_0(own)
        if parts is None:
            return None
        shapes = {n: _whole_shape(t) for n, t in self.objective.model.state_dict(keep_vars=True).items()}
        return {name: assemble(parts, f"{WEIGHT}/{name}").view(shape) for name, shape in shapes.items()}

    def close(self) -> None:
        """Let go of all memory, so that another engine may take this one's place in the process.

        DeepSpeed removes its hooks only: what it holds is cyclic, and ZeRO-3 keeps the last module in a global list.
        """
        self.engine.destroy()
        FWD_MODULE_STACK.clear()
        self._optimizer.state.clear()
        self._copies.clear()
        self._constant.clear()
        del self.engine, self.objective, self._optimizer
        gc.collect()
        torch.cuda.empty_cache()

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.objective.model.named_parameters() if p.requires_grad]

    @staticmethod
    def _is_divided(parameter: Any) -> bool:
        """Whether ZeRO has dealt out the parameter's fp32 values over the ranks."""
        return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")

    def _held(self, parameter: Any, kinds: Iterable[str] = (WEIGHT, *MOMENTS)) -> dict[str, Stretch]:
        """Live fp32 values that this rank holds of a trained parameter, by kind; empty where it holds none."""
        if hasattr(parameter, "ds_id"):  # ZeRO-3 deals out equal parts and pads the last
            size = parameter.ds_tensor.numel()
            start, count = rank() * size, min(size, parameter.ds_numel - rank() * size)
            return {kind: Stretch(start, _of_zero_3(parameter, kind)[:count]) for kind in kinds if count > 0}
        if hasattr(parameter, "_hp_mapping"):  # ZeRO-1 and -2 divide all parameters of a group laid end to end
            fragment = parameter._hp_mapping
            start = 0 if fragment is None else fragment.lp_fragment_address.start
            return {
                kind: Stretch(start, fragment.get_hp_fragment(None if kind == WEIGHT else kind))
                for kind in kinds
                if fragment is not None
            }
        updated = self._updated(parameter)
        state = self._optimizer.state.get(updated, {})
        return {kind: Stretch(0, (updated.detach() if kind == WEIGHT else state[kind]).flatten()) for kind in kinds}

    def _updated(self, parameter: nn.Parameter) -> Tensor:
        """What AdamW updates without ZeRO: the parameter itself, or in bf16 its fp32 copy."""
        return self._copies.get(parameter, parameter)

    def _fp32_copies(self) -> dict[nn.Parameter, Tensor]:
        wrapper = self.engine.optimizer
        if not hasattr(wrapper, "fp32_groups"):  # only DeepSpeed's optimizer for bf16 without ZeRO has them
            return {}
        return dict(zip(chain(*wrapper.fp16_groups), chain(*wrapper.fp32_groups), strict=True))

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


def assemble(parts: Iterable[Part], key: str) -> Tensor:
    """The whole flattened tensor of a key from the parts of all ranks. Pure."""
    stretches = sorted((part[key] for part in parts if key in part), key=lambda stretch: stretch.start)
    return torch.cat([stretch.values for stretch in stretches]) if stretches else torch.empty(0)


def _overwrite(held: Stretch, values: Tensor) -> None:
    held.values.detach().copy_(values)


def _share(flat: Tensor) -> Stretch:
    own = even_share(flat.numel(), rank(), world_size())
    return Stretch(own.start, flat[own.start : own.stop])


def _shares(tensors: Iterable[tuple[str, Tensor]]) -> Part:
    """This rank's copies of its shares of tensors that do not change."""
    shares = ((name, _share(tensor.detach().flatten())) for name, tensor in tensors)
    return {
        f"{WEIGHT}/{name}": Stretch(share.start, share.values.float().cpu().clone())
        for name, share in shares
        if share.values.numel()
    }


def _of_zero_3(parameter: nn.Parameter, kind: str) -> Tensor:
    if kind == WEIGHT:
        return safe_get_local_fp32_param(parameter)
    return safe_get_local_optimizer_state(parameter, kind)


def _whole_shape(tensor: Any) -> torch.Size:
    """Of a parameter that ZeRO-3 may have divided."""
    return getattr(tensor, "ds_shape", tensor.shape)
