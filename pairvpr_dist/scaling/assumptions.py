"""What a plan assumes: the keys of `configs/planning.yaml`, with types and checks, and no values.

Contract: `load_assumptions(["cores_per_gpu=8"])` is the file after overrides. An unknown key or a value that cannot be
is a `UserError` of one line. What the simulation of a step assumes is in `simulation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf

from pairvpr_dist.config import CONFIGS, merge, parse_override, to_dataclass
from pairvpr_dist.errors import UserError

FILE = CONFIGS / "planning.yaml"
OWN = "own"  # of `data`: photographs that are of none of the published sets
KEY = "plan."  # begins an override of these keys on a command line


@dataclass
class DataForm:
    """Images of one form."""

    places: int  # in the published set, as far as they take part
    cities: int
    images_per_second: float  # that one core reads, decodes and crops to 224 px
    image_bytes: float  # read for one view

    def __post_init__(self) -> None:
        for key in ("images_per_second", "image_bytes", "cities"):
            _require(getattr(self, key) > 0, f"data: {key}", getattr(self, key), "must be positive")
        _require(self.places >= 0, "data: places", self.places, "must be 0 or more")


@dataclass
class Assumptions:
    """All of them; `configs/planning.yaml` says what each is and where it is from."""

    usable_memory: float
    cores_per_gpu: int
    spare_cores: int
    worker_share: float
    large_views_share: float
    copy_rate: float
    write_rate: float
    tie: float
    data: dict[str, DataForm]
    stages: dict[str, list[str]]

    def __post_init__(self) -> None:
        for key in ("usable_memory", "worker_share", "large_views_share"):
            _require(0 < getattr(self, key) <= 1, key, getattr(self, key), "must lie in (0, 1]")
        for key in ("copy_rate", "write_rate"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "must be positive")
        _require(0 <= self.tie < 1, "tie", self.tie, "must lie in [0, 1)")
        _require(0 <= self.spare_cores < self.cores_per_gpu, "cores_per_gpu", self.cores_per_gpu,
                 f"must be more than plan.spare_cores={self.spare_cores}")  # fmt: skip
        named = {name for names in self.stages.values() for name in names} | {OWN}
        _require(named <= set(self.data), "data", sorted(self.data), f"must hold {', '.join(sorted(named))}")

    @property
    def worker_cores(self) -> int:
        """Cores for each GPU that may read and decode."""
        return self.cores_per_gpu - self.spare_cores


def load_assumptions(overrides: Sequence[str] = ()) -> Assumptions:
    """The assumptions after `key=value`. Raises `UserError`."""
    config = merge(OmegaConf.structured(Assumptions), OmegaConf.load(FILE), "configs/planning.yaml")
    for text in overrides:
        config = merge(config, parse_override(text, Assumptions), f"{KEY}{text}")
    assumptions: Assumptions = to_dataclass(config, "configs/planning.yaml")
    return assumptions


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the run, and those of the assumptions without `plan.`. Pure."""
    of_run = [text for text in overrides if not text.startswith(KEY)]
    return of_run, [text.removeprefix(KEY) for text in overrides if text.startswith(KEY)]


def _require(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise UserError(f"{KEY}{key}={value}: {remedy}")
