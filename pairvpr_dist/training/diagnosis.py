"""Where in a step the numbers stopped being finite.

Contract: `diagnose` runs a step again under hooks, on every rank, by the way that training takes: the loss is the same
bit for bit, gradients within rounding. It changes no weight and no moment, whether or not the fault comes again: all
gradients are made NaN after they were looked at, so the update is refused. Flags stay on the device until the step is
over. `Observer` itself works on any objective, in any process.

The first tensor that is not finite, in the order of computation, decides. Bad on the way into a module, it was made by
what its caller does between modules; bad on the way out, by the module. In the backward pass it is the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import gather_objects
from pairvpr_dist.objectives.base import Objective
from pairvpr_dist.objectives.masked_modelling import MaskedModelling
from pairvpr_dist.training.engine import Engine

INPUT, OUTPUT = "input", "output"  # of a module, in the forward pass
OUTPUT_GRADIENT, INPUT_GRADIENT = "gradient of the output", "gradient of the input"  # the same in the backward pass
PARAMETER = "gradient of the parameter"

FORWARD, BACKWARD, NOWHERE = "forward", "backward", "nowhere"
PHASES = (FORWARD, BACKWARD, PARAMETER, NOWHERE)  # what comes first is the cause of what comes later


@dataclass(eq=False)
class Call:
    """One call of a module."""

    module: str  # its dotted name in the objective
    caller: Call | None
    weights: list[Tensor]  # bool (), whether each parameter of its own is finite


@dataclass
class Event:
    """A tensor that came by."""

    what: str
    call: Call | None  # none: a parameter's gradient
    name: str  # of the module, or of the parameter
    part: int  # of the batch that passed
    finite: Tensor  # bool (rows,)
    measures: Tensor | None  # fp32 (3,): least and greatest finite number, share of finite ones


@dataclass
class Sighting:
    """What one rank saw. `rows`: which rows of the deciding tensor are bad, of how many."""

    loss: float
    phase: str = NOWHERE
    order: int = 0  # of the deciding tensor among all of the phase
    module: str = ""  # or the parameter
    bad_weights: bool = False  # the module's own weights are not finite
    places: tuple[str, ...] = ()


@dataclass
class Finding:
    """What all ranks together come to."""

    losses: list[float]  # by rank
    phase: str
    module: str
    bad_weights: bool
    ranks: list[int]  # where it was seen
    places: list[str]  # of these ranks: those that are bad by themselves, or all where that cannot be told

    def __str__(self) -> str:
        loss = "loss" if not all(map(isfinite, self.losses)) else "gradient, but not the loss,"
        if self.phase == NOWHERE:
            return "every number was finite when the step was run again: the norm overflows, or the machine erred"
        where = {
            FORWARD: f"first in the output of {self.module}",
            BACKWARD: f"first in the backward pass of {self.module}",
            PARAMETER: f"first in the gradient of {self.module}",
        }[self.phase]
        weights = ", whose weights are not finite" if self.bad_weights else ""
        ranks = f", on rank{'s' if len(self.ranks) > 1 else ''} {', '.join(map(str, self.ranks))}"
        return f"{loss} not finite, {where}{weights}{ranks if len(self.losses) > 1 else ''}"


def diagnose(engine: Engine, batch: Batch, step: int, names: list[str]) -> Finding:
    """Run a step that was refused again, to see where it went wrong; the same on every rank, and all must call.

    batch: this rank's, on the device; names: of its places.
    """
    with engine.uncompiled(), Observer(engine.objective, refuse=True) as observer:
        loss, _, applied = engine.train_on(batch, step)
    assert not applied, "a gradient of NaN was taken for an update"
    return conclude(gather_objects(observer.sighting(loss, batch, names)))


def conclude(sightings: list[Sighting]) -> Finding:
    """The earliest of what the ranks saw, and all ranks that saw the same. Pure."""
    first = min(sightings, key=lambda seen: (PHASES.index(seen.phase), seen.order))
    same = [r for r, seen in enumerate(sightings) if (seen.phase, seen.module) == (first.phase, first.module)]
    ranks = same if first.phase != NOWHERE else []
    return Finding(
        [seen.loss for seen in sightings],
        first.phase,
        first.module,
        first.bad_weights,
        ranks,
        [place for r in ranks for place in sightings[r].places],
    )


class Observer:
    """Hooks on all modules of an objective, for one step inside the block.

    measure: note the range of every tensor; refuse: make all gradients NaN once they were looked at.
    """

    def __init__(self, objective: Objective, *, measure: bool = False, refuse: bool = False) -> None:
        self.events: list[Event] = []
        self._objective, self._measure, self._refuse = objective, measure, refuse
        self._stack: list[Call] = []
        self._handles: list[RemovableHandle] = []
        self._parts = 0  # that have passed, the one under way included

    def __enter__(self) -> Observer:
        for name, module in self._objective.named_modules():
            self._hook_module(name or type(self._objective).__name__, module)
        for name, parameter in self._objective.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self._parameter_hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook_module(self, name: str, module: nn.Module) -> None:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            self._parts += module is self._objective
            weights = [parameter.isfinite().all() for parameter in module.parameters(recurse=False)]
            call = Call(name, self._stack[-1] if self._stack else None, weights)
            self._stack.append(call)
            return (
                tuple(self._taken_in(call, value) for value in args),
                {key: self._taken_in(call, value) for key, value in kwargs.items()},
            )

        def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            call = self._stack.pop()
            for tensor in _numbers(result[0] if module is self._objective else result):  # metrics may be NaN
                self._note(OUTPUT, call, tensor)
                self._note_gradient(OUTPUT_GRADIENT, call, tensor)

        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(module.register_forward_hook(leave))

    def _taken_in(self, call: Call, value: Any) -> Any:
        """An input under another name, so that its gradient is what this call alone gives it."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        self._note(INPUT, call, value)
        if not (value.requires_grad and torch.is_grad_enabled()):
            return value
        own = value.view_as(value)
        self._note_gradient(INPUT_GRADIENT, call, own)
        return own

    def _parameter_hook(self, name: str) -> Any:
        def look(gradient: Tensor) -> Tensor | None:
            self._note(PARAMETER, None, gradient, name)
            return torch.full_like(gradient, torch.nan) if self._refuse else None

        return look

    def _note_gradient(self, what: str, call: Call, tensor: Tensor) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: self._note(what, call, gradient))

    def _note(self, what: str, call: Call | None, tensor: Tensor, name: str = "") -> None:
        finite = tensor.detach().isfinite()
        measures = _measures(tensor.detach(), finite) if self._measure else None
        rows = finite.flatten(1).all(1) if finite.ndim > 1 else finite.all()[None]
        self.events.append(Event(what, call, call.module if call else name, self._parts - 1, rows, measures))

    def sighting(self, loss: Tensor, batch: Batch, names: list[str]) -> Sighting:
        """What came of the step. Waits for the device."""
        seen = Sighting(float(loss.detach()))
        for seen.phase, kinds in (
            (FORWARD, (INPUT, OUTPUT)),
            (BACKWARD, (INPUT_GRADIENT, OUTPUT_GRADIENT)),
            (PARAMETER, (PARAMETER,)),
        ):
            events = [event for event in self.events if event.what in kinds]
            bad = next((i for i, event in enumerate(events) if not event.finite.all()), None)
            if bad is not None:
                break
        else:
            seen.phase = NOWHERE
            return seen
        event, seen.order = events[bad], bad
        call = self._maker(event)
        seen.module = call.module if call else event.name
        seen.bad_weights = call is not None and not all(call.weights)
        rows = places_of_rows(self._objective, batch, event, self._parts)
        told = sorted(set(rows[~event.finite.cpu()].tolist())) if rows is not None else range(len(names))
        seen.places = tuple(names[place] for place in told)
        return seen

    def _maker(self, event: Event) -> Call | None:
        """The call that made the tensor; none for a parameter's gradient."""
        call = event.call
        if event.what == INPUT and call is not None:
            return call.caller
        arrived_bad = {e.call for e in self.events if e.what == OUTPUT_GRADIENT and not e.finite.all()}
        while event.what in (INPUT_GRADIENT, OUTPUT_GRADIENT) and call in arrived_bad and call and call.caller:
            call = call.caller
        return call


def places_of_rows(objective: Objective, batch: Batch, event: Event, parts: int) -> Tensor | None:
    """The place (index in the batch) of each row of a tensor inside the model; None where rows are something else.

    `parts`: in which the batch passed, one after another.
    """
    places, views = batch.keys.shape[0] // parts, batch.keys.shape[1]
    rows = len(event.finite)
    if event.call is None or not event.name.startswith("model.") or rows % places or rows > 2 * places * views:
        return None
    numbers = torch.arange(rows)
    if isinstance(objective, MaskedModelling):  # all first views, then all second ones
        return event.part * places + numbers % places
    return numbers % (places * views) // views if rows % (places * views) == 0 else None  # a place's views in a row


def _numbers(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module gives back."""
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _measures(tensor: Tensor, finite: Tensor) -> Tensor:
    least, greatest = (torch.where(finite, tensor, bound).float().flatten() for bound in (torch.inf, -torch.inf))
    if not tensor.numel():
        return torch.tensor([torch.nan, torch.nan, 1.0])
    return torch.stack([least.min(), greatest.max(), finite.float().mean()]).cpu()
