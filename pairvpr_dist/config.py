"""Configuration from files: dataclasses for the types, YAML for the values, `key=value` for the run at hand.

Contract: `load_config(stage, size, overrides)` is `configs/<stage>/default.yaml`, then the delta
`configs/<stage>/<size>.yaml`, then the overrides, in this order. An unknown key or a wrong type is a `UserError` that
names the nearest valid key.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from pairvpr_dist.errors import UserError, nearest
from pairvpr_dist.settings import EvalRunConfig, RunConfig, Stage1Config, Stage2Config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


STAGES: dict[str, type[RunConfig]] = {"stage1": Stage1Config, "stage2": Stage2Config, "eval": EvalRunConfig}


def load_config(stage: str, size: str, overrides: Sequence[str] = ()) -> Any:
    """The resolved configuration of `stage` at `size` after `overrides` (`key=value`, values in YAML).

    Returns the dataclass of `STAGES[stage]`. Raises `UserError` for an unknown stage, size or key, a wrong type, a
    missing value or one that its check refuses.
    """
    if stage not in STAGES:
        raise UserError(f"stage '{stage}' is unknown; {nearest(stage, STAGES)}")
    sizes = {p.stem for p in (CONFIGS / stage).glob("*.yaml")} - {"default"}
    if size not in sizes:
        raise UserError(f"size '{size}' is unknown for {stage}; {nearest(size, sizes)}")
    config = merge(
        OmegaConf.structured(STAGES[stage]),
        OmegaConf.load(CONFIGS / stage / "default.yaml"),
        f"configs/{stage}/default.yaml",
    )
    config = merge(config, OmegaConf.load(CONFIGS / stage / f"{size}.yaml"), f"configs/{stage}/{size}.yaml")
    config = merge(config, OmegaConf.create({"stage": stage, "size": size}), "stage and size")
    for override in overrides:
        config = merge(config, parse_override(override, STAGES[stage]), override)
    return to_dataclass(config, stage)


def config_from_dict(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    """A configuration dataclass from plain values read from `where` (a checkpoint's or export's JSON)."""
    return to_dataclass(merge(OmegaConf.structured(cls), OmegaConf.create(values), where), where)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values, for JSON and YAML."""
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)  # type: ignore[return-value]


def to_yaml(config: Any) -> str:
    """A configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def parse_override(text: str, cls: type[Any]) -> DictConfig:
    """`a.b=value` as a tree. A lone value for a list key becomes a list of it, split at commas."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"'{text}' is not an override; write key=value, for example train.epochs=10")
    kind = _field_type(cls, key)
    if kind is not None and str(kind).startswith("list") and not value.startswith("["):
        value = f"[{value}]"
    try:
        return OmegaConf.from_dotlist([f"{key}={value}"])
    except Exception as error:  # OmegaConf passes on whatever the YAML parser raises
        raise UserError(f"{text}: the value is not valid YAML: {str(error).splitlines()[0]}") from None


def known_keys(cls: type[Any], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration dataclass, leaves only."""
    keys: list[str] = []
    for name, kind in _hints(cls).items():
        keys += known_keys(kind, f"{prefix}{name}.") if _is_section(kind) else [f"{prefix}{name}"]
    return keys


def has_key(stage: str, key: str) -> bool:
    """Whether the configuration of `stage` knows the dotted key, a leaf or a section."""
    return any(known == key or known.startswith(f"{key}.") for known in known_keys(STAGES[stage]))


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _field_type(cls: type[Any], key: str) -> Any:
    kind: Any = cls
    for part in key.split("."):
        kind = _hints(kind).get(part) if _is_section(kind) else None
    return kind


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind)


def merge(config: Any, delta: DictConfig | ListConfig, where: str) -> Any:
    """A structured configuration after the values of `delta`, read from `where`. Raises `UserError`."""
    try:
        return OmegaConf.merge(config, delta)
    except (ConfigKeyError, ConfigAttributeError) as error:
        key = _first_leaf(delta, error.full_key or str(error.key))
        known = known_keys(typing.cast(type, OmegaConf.get_type(config)))
        raise UserError(f"{where}: unknown key '{key}'; {_nearest_key(key, known)}") from None
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None
    except OmegaConfBaseException as error:
        key = f" (key {error.full_key})" if error.full_key else ""  # none of a section that is given a single value
        raise UserError(f"{where}: {str(error).splitlines()[0]}{key}") from None


def _first_leaf(delta: DictConfig | ListConfig, key: str) -> str:
    """The first leaf of `delta` at or below `key`: of trian.epochs=1 only `trian` is reported as unknown."""
    node = OmegaConf.select(delta, key)
    while isinstance(node, DictConfig) and node:
        name = str(next(iter(node)))
        key, node = f"{key}.{name}", node[name]
    return key


def _nearest_key(key: str, known: Iterable[str]) -> str:
    """A hint: among the keys of the same last name, else those of the same section, else all."""
    names = list(known)
    section, _, last = key.rpartition(".")
    same_name = [name for name in names if name.rpartition(".")[2] == last]
    siblings = [name for name in names if name.startswith(f"{section}.")]
    hints = [nearest(key, candidates) for candidates in (same_name, siblings, names)]
    return next((hint for hint in hints if hint.startswith("did")), hints[-1])


def to_dataclass(config: Any, where: str) -> Any:
    """The dataclass of a structured configuration, with its checks. Raises `UserError`, also for what has no value."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if not missing:
            return OmegaConf.to_object(config)
    except InterpolationResolutionError as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    hints = " ".join(f"{key}=..." for key in missing)
    raise UserError(f"{where}: no value for {', '.join(missing)}; add {hints}")
