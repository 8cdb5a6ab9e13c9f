"""Losses and miners of pytorch-metric-learning by name, as a configuration writes them.

Contract: `Name(key=number, ...)` is data, never run: a name of the library and plain numbers for its arguments. A loss
must be a function of descriptors and labels alone, because its own weights (class centres) would be in no checkpoint
and mean nothing for places that are not trained on. What it draws at random or remembers would differ between ranks
and after a restart. It is tried once when it is built, so that a run does not find out in its first step.
"""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from pairvpr_dist.errors import UserError, nearest


def build_loss(text: str) -> nn.Module:
    """The loss that `objective.descriptor_loss` names."""
    return _build(text, losses, "objective.descriptor_loss")


def build_miner(text: str) -> nn.Module:
    """The miner that `objective.descriptor_miner` names."""
    return _build(text, miners, "objective.descriptor_miner")


def _build(text: str, library: ModuleType, key: str) -> Any:
    name, arguments = parse_call(text, key)
    known = [known for known, value in vars(library).items() if inspect.isclass(value)]
    if name not in known:
        raise UserError(f"{key}={text}: pytorch-metric-learning has no {name}; {nearest(name, known)}")
    try:
        with torch.device("cpu"):  # also where a model is built without memory
            built = getattr(library, name)(**arguments)
            if next(built.parameters(), None) is not None:
                what = "has weights of its own; choose one that is a function of descriptors alone"
                raise UserError(f"{key}={text}: {what}")
            answers = [_try(built, seed) for seed in (0, 1)]
    except UserError:
        raise
    except Exception as error:  # the library checks its arguments with whatever comes to hand
        told = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{key}={text}: does not work on descriptors and places: {told}") from None
    if not all(map(torch.equal, *answers)):
        raise UserError(f"{key}={text}: draws at random or remembers batches, and so would differ between processes")
    return built


def _try(built: nn.Module, seed: int) -> list[Tensor]:
    """What a loss or miner makes of a small batch, which is the same for every seed."""
    draws = torch.Generator().manual_seed(0)
    descriptors = F.normalize(torch.randn(24, 8, generator=draws))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        answer = built(descriptors, torch.arange(24) // 4)
    return [answer] if isinstance(answer, Tensor) else list(answer)


def parse_call(text: str, key: str) -> tuple[str, dict[str, Any]]:
    """`Name(a=1, b=0.5)` as name and arguments; `Name` alone has none."""
    try:
        tree = ast.parse(text, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(func=tree, args=[], keywords=[])
        if not isinstance(call.func, ast.Name) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        return call.func.id, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise UserError(f"{key}={text}: write Name(argument=number, ...)") from None
