"""Losses and miners of pytorch-metric-learning by name, as a configuration writes them.

Contract: `Name(key=number, ...)` is data, never run: a name of the library and plain numbers for its arguments. A loss
must be a function of descriptors and labels alone, because its own weights (class centres) would be in no checkpoint
and mean nothing for places that are not trained on.
"""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import Any

from pytorch_metric_learning import losses, miners
from torch import nn

from pairvpr_dist.errors import UserError, nearest


def build_loss(text: str) -> nn.Module:
    """The loss that `objective.descriptor_loss` names."""
    key = "objective.descriptor_loss"
    loss = _build(text, losses, key)
    if next(loss.parameters(), None) is not None:
        raise UserError(f"{key}={text}: has weights of its own; choose one that is a function of descriptors alone")
    return loss


def build_miner(text: str) -> nn.Module:
    """The miner that `objective.descriptor_miner` names."""
    return _build(text, miners, "objective.descriptor_miner")


def _build(text: str, library: ModuleType, key: str) -> Any:
    name, arguments = parse_call(text, key)
    known = [known for known, value in vars(library).items() if inspect.isclass(value)]
    if name not in known:
        raise UserError(f"{key}={text}: pytorch-metric-learning has no {name}; {nearest(name, known)}")
    try:
        return getattr(library, name)(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{key}={text}: {' '.join(str(error).split()) or 'not possible'}") from None


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
