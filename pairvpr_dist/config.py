"""Configuration from files: dataclasses for the types, YAML for the values, `key=value` for the run at hand.

Contract: `load_config(stage, size, overrides)` is `configs/<stage>/default.yaml`, then the delta
`configs/<stage>/<size>.yaml`, then the overrides, in this order. An unknown key or a wrong type is a `UserError` that
names the nearest valid key. The override `objective=NAME` trains a stage by another recipe:
`configs/<stage>/<NAME>.yaml` and, where it is there, `<NAME>-<size>.yaml` come before the other overrides, and have the
whole section `objective`.
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
from pairvpr_dist.settings import EvalRunConfig, RunConfig, Stage1Config, Stage2Config, SupVPRConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


STAGES: dict[str, type[RunConfig]] = {"stage1": Stage1Config, "stage2": Stage2Config, "eval": EvalRunConfig}
RECIPES: dict[str, dict[str, type[RunConfig]]] = {"stage2": {"supvpr": SupVPRConfig}}  # beside those of `STAGES`


def load_config(stage: str, size: str, overrides: Sequence[str] = ()) -> Any:
    """The resolved configuration of `stage` at `size` after `overrides` (`key=value`, values in YAML).

    Returns the dataclass of `STAGES[stage]`. Raises `UserError` for an unknown stage, size or key, a wrong type, a
    missing value or one that its check refuses.
    """
    if stage not in STAGES:
        raise UserError(f"stage '{stage}' is unknown; {nearest(stage, STAGES)}")
    recipe, overrides = _take_recipe(stage, overrides)
    cls = config_class(stage, recipe)
    if size not in sizes(stage):
        raise UserError(f"size '{size}' is unknown for {stage}; {nearest(size, sizes(stage))}")
    config = OmegaConf.structured(cls)
    names = ["default", size] + ([recipe, f"{recipe}-{size}"] if recipe else [])
    for name in names:
        path = CONFIGS / stage / f"{name}.yaml"
        if name != f"{recipe}-{size}" or path.exists():
            delta: Any = OmegaConf.load(path)
            if recipe and not name.startswith(recipe):
                delta.pop("objective", None)  # of another objective
            config = merge(config, delta, f"configs/{stage}/{name}.yaml")
    named = {"stage": stage, "size": size} | ({"recipe": recipe} if recipe else {})
    config = merge(config, OmegaConf.create(named), "stage and size")
    for override in overrides:
        if override.partition("=")[0] == "recipe":
            raise UserError(f"{override}: a recipe is named by objective=NAME, as objective=supvpr")
        config = merge(config, parse_override(override, cls), override)
    return to_dataclass(config, stage)


def sizes(stage: str) -> set[str]:
    """The sizes that a stage can be trained or evaluated at."""
    names = {path.stem for path in (CONFIGS / stage).glob("*.yaml")} - {"default"}
    return {name for name in names if name.partition("-")[0] not in RECIPES.get(stage, {})}


def config_class(stage: str, recipe: str | None = None) -> type[RunConfig]:
    """The dataclass of a stage's configuration. Raises `UserError` for a recipe that the stage does not have."""
    known = RECIPES.get(stage, {})
    if recipe is not None and recipe not in known:
        told = nearest(recipe, known) if known else f"{stage} has one objective alone; leave it out"
        raise UserError(f"objective={recipe}: no such recipe for {stage}; {told}")
    return STAGES[stage] if recipe is None else known[recipe]


def training_config(values: dict[str, Any], where: str) -> Any:
    """A training configuration as it was written into a run, a checkpoint or a replay; `values` names its stage."""
    return config_from_dict(config_class(values["stage"], values.get("recipe")), values, where)


def _take_recipe(stage: str, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """What `objective=NAME` names, and the other overrides."""
    named = [text for text in overrides if text.partition("=")[0] == "objective" and "{" not in text]
    others = [text for text in overrides if text not in named]
    return (named[-1].partition("=")[2] if named else None), others


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
    """Whether the configuration of `stage`, by one recipe or another, knows the dotted key, a leaf or a section."""
    classes = [STAGES[stage], *RECIPES.get(stage, {}).values()]
    known = [name for cls in classes for name in known_keys(cls)]
    return any(name == key or name.startswith(f"{key}.") for name in known)


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
