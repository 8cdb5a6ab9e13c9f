"""GPUs and what connects them: the table `configs/hardware.yaml`, and what users add to it.

Contract: a user's file of the same form adds entries or changes keys of those that are there; an unknown key, a wrong
type or a missing value is a `UserError` that names file, GPU and key. A GPU that is in no entry, or a slice of one
(MIG), has no known peak. Rates are a second, and of bytes in one direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from pairvpr_dist.config import CONFIGS, merge, to_dataclass
from pairvpr_dist.errors import UserError, nearest

TABLE = CONFIGS / "hardware.yaml"
TERA, GIGA, GIB = 1e12, 1e9, 2**30


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


@dataclass
class Entry:
    """A GPU as `configs/hardware.yaml` has it."""

    driver_names: list[str]
    tflops: float
    memory_gib: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    gpus_per_node: int
    efficiency: float

    def __post_init__(self) -> None:
        for key in ("tflops", "memory_gib", "memory_gb_s", "link_gb_s", "network_gb_s", "gpus_per_node"):
            if not getattr(self, key) > 0:
                raise UserError(f"{key}: {getattr(self, key)}: must be positive")
        if not 0 < self.efficiency <= 1:
            raise UserError(f"efficiency: {self.efficiency}: must be a share, above 0 and at most 1")


def load_hardware(file: Path | None = None) -> dict[str, Gpu]:
    """All GPUs by name: our table, then what a user's `file` adds or changes. Raises `UserError`."""
    known = {name: OmegaConf.create(values) for name, values in _read(TABLE).items()}
    origins = dict.fromkeys(known, str(TABLE))
    for name, values in _read(file).items() if file is not None else ():
        known[name] = _over(known.get(name, {}), values, f"{file}: {name}")
        origins[name] = str(file)
    return {name: _gpu(name, values, f"{origins[name]}: {name}") for name, values in known.items()}


def find_gpu(name: str, file: Path | None = None) -> Gpu:
    """The GPU of this name. Raises `UserError` with the nearest name."""
    gpus = load_hardware(file)
    if name not in gpus:
        hint = nearest(name, gpus)
        raise UserError(f"--gpu {name}: not in configs/hardware.yaml; {hint} (--hardware FILE adds your own)")
    return gpus[name]


def peak_flops(driver_name: str) -> float | None:
    """Operations a second, at most, of the GPU to which the driver gives this name; None where it is not known.

    Of the entries whose words are all in the name, the one with the most words counts.
    """
    words = set(re.split(r"[\s-]+", driver_name))
    if "MIG" in words:
        return None
    known = {entry: flops for entry, flops in _peaks() if words.issuperset(entry.split())}
    return known[max(known, key=lambda entry: len(entry.split()))] if known else None


@cache
def _peaks() -> list[tuple[str, float]]:
    return [(entry, gpu.flops) for gpu in load_hardware().values() for entry in gpu.driver_names]


def _read(file: Path) -> dict[str, Any]:
    """The entries of a file, as they are written."""
    try:
        entries = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except FileNotFoundError:
        raise UserError(f"--hardware {file}: no such file") from None
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{file}: not readable as a table of GPUs: {str(error).splitlines()[0]}") from None
    if not isinstance(entries, dict):
        raise UserError(f"{file}: not a table of GPUs; write NAME: {{tflops: ...}} as in configs/hardware.yaml")
    table = {str(name): values for name, values in entries.items()}
    for name, values in table.items():
        if not isinstance(values, dict):
            raise UserError(f"{file}: {name}: must be keys with values, as in configs/hardware.yaml")
    return table


def _over(values: Any, changes: dict[str, Any], where: str) -> Any:
    """The values of an entry after a user's changes, which are checked by themselves so that an error is theirs."""
    merge(OmegaConf.structured(Entry), OmegaConf.create(changes), where)
    return OmegaConf.merge(values, changes)


def _gpu(name: str, values: Any, where: str) -> Gpu:
    try:
        entry: Entry = to_dataclass(merge(OmegaConf.structured(Entry), values, where), where)
    except UserError as error:  # a check of the entry does not know which it is
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from None
    return Gpu(
        name=name,
        driver_names=tuple(entry.driver_names),
        flops=entry.tflops * TERA,
        memory=entry.memory_gib * GIB,
        memory_rate=entry.memory_gb_s * GIGA,
        link_rate=entry.link_gb_s * GIGA,
        network_rate=entry.network_gb_s * GIGA,
        gpus_per_node=entry.gpus_per_node,
        efficiency=entry.efficiency,
    )
