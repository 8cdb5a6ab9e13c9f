"""What a study is: a file that names runs of one stage, which differ in a few keys. Pure, apart from reading it.

Contract: every point of a study is a whole configuration, checked before the first of them runs. A point is known by a
digest of all that it measures, not by where it lies; so a file may be edited and only what is new is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError

from pairvpr_dist.config import CONFIGS, STAGES, known_keys, load_config, merge, parse_override, to_dataclass, to_dict
from pairvpr_dist.costs.hardware import load_hardware
from pairvpr_dist.errors import UserError, nearest
from pairvpr_dist.settings import TrainingConfig

STUDIES = CONFIGS / "study"
KINDS = ("throughput", "loss")
SIZE = "size"  # of a point, beside the keys of its stage's configuration
OWN_KEY = "study."  # before a key of the study's file, on the command line
OWNED = {  # keys that a study sets for its points, and what to do in their place
    "stage": "give study.stage", SIZE: "give study.size, or sweep over it", "run": "give --out",
    "data.shards": "give study.shards", "data.validation": "give study.validation",
}  # fmt: skip
VALIDATION_SEED = 1  # of the synthetic city that is never trained on


@dataclass
class SyntheticCity:
    """A shard set of the synthetic city, built once into the study's folder; see shards/build.py synthetic."""

    places: int
    views: int  # of a place
    size: int  # pixels
    validation_places: int = 0  # of another city, for kind loss


@dataclass
class Study:
    """The file of a study. What is left out is empty."""

    title: str
    kind: str  # throughput: rates, memory, time of a step; loss: how far training comes with how much compute
    stage: str  # stage1 or stage2
    size: str  # tiny, vits, ...; a sweep may name others
    warmup_steps: int  # first steps, which no rate is taken of
    measured_steps: int  # the steps after them
    overrides: list[str] = field(default_factory=list)  # key=value of every point
    sweep: dict[str, Any] = field(default_factory=dict)  # key: [values]; a point for each combination
    points: list[Any] = field(default_factory=list)  # in place of a sweep: {key: value, ...} of each point
    shards: list[str] = field(default_factory=list)  # shard sets; or
    validation: list[str] = field(default_factory=list)  # those of places that are never trained on, for kind loss
    synthetic: SyntheticCity | None = None  # in place of them
    repeat: int = 1  # rounds, in which all points take turns; the table has the median over them
    gpu: str | None = None  # a name of configs/hardware.yaml, for predictions; null: this machine as it is measured

    def __post_init__(self) -> None:
        _require(self.kind in KINDS, "kind", self.kind, f"must be {' or '.join(KINDS)}")
        _require(self.stage in ("stage1", "stage2"), "stage", self.stage, "must be stage1 or stage2")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "must be 0 or more")
        _require(self.measured_steps > 0, "measured_steps", self.measured_steps, "must be positive")
        _require(self.repeat > 0, "repeat", self.repeat, "must be positive")
        _require(self.repeat == 1 or self.kind == "throughput", "repeat", self.repeat,
                 "a run's loss comes out the same again; sweep over seed")  # fmt: skip
        _require(bool(self.sweep) != bool(self.points), "sweep", self.sweep, "give either sweep or points")
        _require(bool(self.shards) != (self.synthetic is not None), "shards", self.shards, "give shards or synthetic")
        _require(not (self.validation and self.synthetic), "validation", self.validation,
                 "beside synthetic there is synthetic.validation_places")  # fmt: skip
        for key, values in self.sweep.items():
            _require(isinstance(values, list) and bool(values), f"sweep.{key}", values, "must be a list of values")
        for point in self.points:
            _require(isinstance(point, dict) and bool(point), "points", point, "each must be key: value, ...")
        for key in swept_keys(self):
            _require(key == SIZE or key not in OWNED, "sweep", key, f"cannot differ between points; {OWNED.get(key)}")
        for text in self.overrides:
            key = text.partition("=")[0]
            _require(key not in OWNED, "overrides", text, f"a study sets it; {OWNED.get(key)}")

    @property
    def total_steps(self) -> int:
        """Steps of a point, unless it sweeps over them."""
        return self.warmup_steps + self.measured_steps


@dataclass(frozen=True)
class Point:
    """One run of a study."""

    values: dict[str, Any]  # what it differs in from others: key and value
    size: str
    overrides: tuple[str, ...]  # key=value of the run
    config: TrainingConfig
    setting: str  # digest of all that decides what it measures
    round: int = 0

    @property
    def digest(self) -> str:
        """By which a study knows it again."""
        return hashlib.sha256(f"{self.setting} {self.round}".encode()).hexdigest() if self.round else self.setting

    @property
    def name(self) -> str:
        """Its folder: what it differs in, in letters that any disk takes, and its digest."""
        told = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items())
        return f"{re.sub(r'[^A-Za-z0-9_.,=+-]', '_', told)[:100]}-{self.digest[:8]}"

    def value_of(self, key: str) -> Any:
        """What its run has for `key`, whether it differs in it from others or not."""
        return self.size if key == SIZE else reduce(getattr, key.split("."), self.config)

    @property
    def folder(self) -> Path:
        """Where its stage writes."""
        return Path(self.config.run) / self.config.stage


def study_file(name: str) -> Path:
    """The file of a study: by name below configs/study, or by path where it has a folder or an ending. `UserError`."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file; it should be a study")
        return Path(name)
    known = [path.stem for path in STUDIES.glob("*.yaml")]
    if name not in known:
        raise UserError(f"study '{name}' is unknown; {nearest(name, known)}; a path to YAML will do as well")
    return STUDIES / f"{name}.yaml"


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a file after `overrides`: study.KEY=VALUE of its own keys, KEY=VALUE of every point's run.

    Raises `UserError` for what is no study, an unknown key, and an override of a key that the study sweeps over.
    """
    try:
        values = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path}: not readable as a study: {str(error).splitlines()[0]}") from None
    if not isinstance(values, DictConfig):
        raise UserError(f"{path}: not a study; write keys of configs/study/strong.yaml")
    names = [each.name for each in fields(Study)]
    if unknown := [str(key) for key in values if key not in names]:  # merge would blame what is below it
        raise UserError(f"{path}: unknown key '{unknown[0]}'; {nearest(unknown[0], names)}")
    of_points = values.get("overrides")
    if isinstance(of_points, ListConfig) and any(not isinstance(text, str) for text in of_points):
        raise UserError(f"{path}: overrides: each must be text; write key=value, not key: value")
    config = merge(OmegaConf.structured(Study), values, str(path))
    own = [text.removeprefix(OWN_KEY) for text in overrides if text.startswith(OWN_KEY)]
    for text in own:
        config = merge(config, parse_override(text, Study), f"{OWN_KEY}{text}")
    study: Study = to_dataclass(config, str(path))
    of_runs = [text for text in overrides if not text.startswith(OWN_KEY)]
    for text in of_runs:
        if text.partition("=")[0] in swept_keys(study):
            raise UserError(f"{text}: {path} sweeps over it; edit the file")
    if study.gpu is not None and study.gpu not in (gpus := load_hardware()):
        raise UserError(f"{path}: gpu={study.gpu}: not in configs/hardware.yaml; {nearest(study.gpu, gpus)}")
    return replace(study, overrides=[*study.overrides, *of_runs])


def swept_keys(study: Study) -> list[str]:
    """What the points of a study differ in."""
    return list(study.sweep or {key: None for point in study.points for key in point})


def combinations(study: Study) -> list[dict[str, Any]]:
    """What each point sets. Pure."""
    if study.points:
        return [dict(point) for point in study.points]
    return [dict(zip(study.sweep, values, strict=True)) for values in product(*study.sweep.values())]


def make_points(study: Study, folder: Path) -> list[Point]:
    """The points of a study that lies in `folder`, round by round. Raises `UserError` where one is no run."""
    points = [_point(study, folder, values) for values in combinations(study)]
    if len({point.setting for point in points}) < len(points):
        raise UserError(f"{study.title}: two points are the same run; give each value once")
    return [_in_folder(replace(point, round=turn), folder) for turn in range(study.repeat) for point in points]


def data_folders(study: Study, folder: Path) -> tuple[list[str], list[str]]:
    """The shard sets that the points train on, and those that they are validated on."""
    city = study.synthetic
    if city is None:
        return study.shards, study.validation
    own = _city_folder(folder, city.places, city, 0)
    held_out = [_city_folder(folder, city.validation_places, city, VALIDATION_SEED)] if city.validation_places else []
    return [own], held_out


def _city_folder(folder: Path, places: int, city: SyntheticCity, seed: int) -> str:
    return str(folder / "data" / f"city-{seed}-{places}x{city.views}x{city.size}")


def _in_folder(point: Point, folder: Path) -> Point:
    run = str(folder / "points" / point.name)
    overrides = (*point.overrides, f"run={json.dumps(run)}")
    return replace(point, overrides=overrides, config=replace(point.config, run=run))


def _point(study: Study, folder: Path, values: dict[str, Any]) -> Point:
    size = str(values.get(SIZE, study.size))
    shards, validation = data_folders(study, folder)
    keys = {key: value for key, value in values.items() if key != SIZE}
    known = known_keys(STAGES[study.stage])
    if unknown := [key for key in keys if key not in known]:
        raise UserError(f"{study.title}: unknown key '{unknown[0]}'; {nearest(unknown[0], known)}")
    overrides = [
        *_common(study),
        *study.overrides,
        *(f"{key}={json.dumps(value)}" for key, value in keys.items()),
        f"data.shards={json.dumps(shards)}",
    ]
    if study.kind == "loss":
        overrides.append(f"data.validation={json.dumps(validation)}")
    config = load_config(study.stage, size, overrides)
    steps = config.train.max_steps
    if steps is None or steps <= study.warmup_steps:
        raise UserError(f"train.max_steps={steps}: must be more than study.warmup_steps={study.warmup_steps}")
    return Point(values, size, tuple(overrides), config, _digest(study, config))


def _common(study: Study) -> list[str]:
    """What every run of a study is asked for, unless its file says otherwise: to measure, and no more."""
    steps = study.total_steps
    return [
        f"train.max_steps={steps}", "train.log_every=1", f"train.checkpoint_every={max(steps, 10**6)}",
        "train.keep_checkpoints=1", "train.self_check=false", "train.validate_every=0", "launch.max_restarts=0",
    ]  # fmt: skip


def _digest(study: Study, config: TrainingConfig) -> str:
    """Of all that decides what a point measures; where a city of the study's own lies does not."""
    values = to_dict(config)
    values.pop("run")
    city = asdict(study.synthetic) if study.synthetic else None
    if city:
        values["data"] |= {"shards": [], "validation": []}
    content = [study.kind, study.warmup_steps, city, values]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _require(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise UserError(f"{key}={value}: {remedy}")
