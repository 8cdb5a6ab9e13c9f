"""Where the time of a training step goes, by part of the model and by kind of work, from torch's profiler.

Contract: every microsecond of an operator (of its kernels on a GPU) counts once: for the innermost part that it runs
in, and a gradient for the part of the operator that it belongs to. What is left of the step's wall time is waiting.
"""

from __future__ import annotations

import bisect
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

PART = "part of the step: "
FROZEN, TRAINED, DECODER, HEADS = "encoder, frozen", "encoder, trained", "decoder", "heads"
LOSS, UPDATE, REST, WAITING = "views and loss", "update", "gradients, rest", "waiting"
KINDS = {  # words in an operator's or kernel's name; the first that fits counts
    "attention": ("attention", "flash", "fmha"),
    "products": ("mm", "linear", "gemm", "convolution", "cutlass", "nvjet", "mkldnn"),
    "norms": ("layer_norm", "batch_norm", "var_mean"),
    "activations": ("gelu", "silu", "relu", "softplus", "softmax"),
    "copies": ("copy", "cat", "clone", "fill", "zero", "memcpy", "memset", "gather", "scatter", "index", "empty"),
    "waiting": ("synchronize", "local_scalar", "item"),
}
Spent = list[tuple[str, str, float]]  # part, kind, seconds of one step


def profiled(steps: Any, count: int, trace: Path | None) -> Spent:
    """What a step of `steps` (see `step_worker.Steps`) spends, over `count` of them."""
    undo = label(steps)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if steps.on_gpu else [])]
    steps.one()
    steps.wait()
    with profile(activities=activities) as recorded:
        started = time.perf_counter()
        for _ in range(count):
            steps.one()
        steps.wait()
        wall = time.perf_counter() - started
    for act in undo:
        act()
    if trace is not None:
        recorded.export_chrome_trace(str(trace))
    spent = tally(recorded.events() or [], steps.on_gpu)
    spent[WAITING, WAITING] += max(0.0, wall - sum(spent.values()))
    return [(part, kind, seconds / count) for (part, kind), seconds in spent.items()]


def label(steps: Any) -> list[Callable[[], None]]:
    """Let the parts of a step be seen in a profile; what takes the labels away."""
    model = steps.model
    encoder, decoder = model.encoder, model.decoder
    undo = [
        *around(encoder, TRAINED), *around(encoder.vit.patch_embed, FROZEN if encoder.frozen_blocks else TRAINED),
        *around(decoder, DECODER), *around(model.pixel_head, HEADS),
        *around(model.descriptor_head, HEADS), *around(model.pair_head, HEADS),
    ]  # fmt: skip
    frozen, run = {id(block) for block in encoder.vit.blocks[: encoder.frozen_blocks]}, encoder.run_block

    def labelled(block: nn.Module, *tokens: Any) -> Any:
        with record_function(PART + (FROZEN if id(block) in frozen else TRAINED)):
            return run(block, *tokens)

    encoder.run_block = labelled
    undo.append(lambda: setattr(encoder, "run_block", run))
    updating = [steps.step.engine] if steps.ours else [steps.step.scaler, steps.step.optimizer]
    for owner in updating:
        undo.append(label_call(owner, "step", UPDATE))
    return undo


def around(module: nn.Module, part: str) -> list[Callable[[], None]]:
    """Label what a module does forward."""
    open_ranges: list[Any] = []

    def enter(*_: Any) -> None:
        open_ranges.append(record_function(PART + part))
        open_ranges[-1].__enter__()

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter).remove, module.register_forward_hook(leave).remove]


def label_call(owner: Any, name: str, part: str) -> Callable[[], None]:
    """Label the calls of a method."""
    method = getattr(owner, name)

    def labelled(*arguments: Any, **named: Any) -> Any:
        with record_function(PART + part):
            return method(*arguments, **named)

    setattr(owner, name, labelled)
    return lambda: delattr(owner, name)


def tally(events: Iterable[Any], on_gpu: bool) -> defaultdict[tuple[str, str], float]:
    """Seconds by (part, kind)."""
    events = list(events)
    spans: dict[int, list[tuple[float, float, str]]] = defaultdict(list)  # by thread: start, end, part
    for event in events:
        if event.name.startswith(PART):
            spans[event.thread].append((event.time_range.start, event.time_range.end, event.name.removeprefix(PART)))
    for found in spans.values():
        found.sort()
    of_sequence = {  # the part of the operator that a gradient belongs to
        event.sequence_nr: part
        for event in events
        if event.sequence_nr >= 0 and not _is_backward(event) and (part := _innermost(spans, event)) is not None
    }
    spent: defaultdict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        if event.name.startswith(PART) or event.device_type != torch.autograd.DeviceType.CPU:
            continue
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        if seconds > 0:
            part = _part(event, spans, of_sequence)
            spent[part, "optimizer" if part == UPDATE else kind_of(event.name)] += seconds
    return spent


def _part(event: Any, spans: dict[int, list[tuple[float, float, str]]], of_sequence: dict[int, str]) -> str:
    inside = _innermost(spans, event)
    if inside is not None:
        return inside
    outer = event
    while outer is not None:
        if _is_backward(outer):
            return of_sequence.get(outer.sequence_nr, REST if "AccumulateGrad" in outer.name else LOSS)
        outer = outer.cpu_parent
    return LOSS


def _is_backward(event: Any) -> bool:
    return event.name.startswith("autograd::engine::evaluate_function")


def _innermost(spans: dict[int, list[tuple[float, float, str]]], event: Any) -> str | None:
    """The label that an event runs under, which on one thread is the last to begin of those not yet ended."""
    found = spans.get(event.thread, [])
    start = event.time_range.start
    for i in range(bisect.bisect_right(found, (start, float("inf"), "")) - 1, -1, -1):
        if found[i][1] >= event.time_range.end:
            return found[i][2]
    return None


def kind_of(name: str) -> str:
    """The kind of work of an operator or kernel, by its name."""
    lowered = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lowered for word in words)), "elementwise")


def shares_by(spent: Spent, column: int) -> str:
    """Shares of the time by part (column 0) or kind (column 1), the largest first."""
    whole = sum(seconds for _, _, seconds in spent)
    sums: defaultdict[str, float] = defaultdict(float)
    for part, kind, seconds in spent:
        sums[(part, kind)[column]] += seconds
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in ordered if seconds >= 0.001 * whole)
