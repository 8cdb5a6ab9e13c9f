"""Where a model comes from: a run, one of its checkpoints, an export folder, a released file, a DINOv2 encoder.

Contract: `open_source` and `open_file` give a whole model, loaded strictly, with what is known of its making. What a
file lacks starts from scratch, from a fixed seed, and the facts name it. Nothing in any of them is run as code.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pairvpr_dist.config import CONFIGS, load_config, training_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json, read_json_lines
from pairvpr_dist.models.card import results_table
from pairvpr_dist.models.encoder import PRESETS
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.models.released import (
    CLASS_POSITION,
    CLASS_TOKEN,
    count_blocks,
    from_released,
    is_released,
    set_aside,
)
from pairvpr_dist.models.weights import absent_heads, is_dinov2, load_encoder, load_model_state, read_tensors, state_in
from pairvpr_dist.retrieval.evaluate import weights_digest
from pairvpr_dist.settings import ModelConfig
from pairvpr_dist.training.checkpoint import BEST, LATEST, STATE, Checkpoint, Progress, find_fault

log = logging.getLogger(__name__)
KEPT = "released.safetensors"  # beside the weights of an import: what the file held and the model has no place for
ENCODER_ONLY = "encoder only"
FROM_SCRATCH = "from scratch"  # the fact that names what a file lacked
FILE_DIGEST = "sha256 of the file"  # the fact that says which file was imported
RESULTS = "results"  # the fact that tells what was measured


@dataclass
class Source:
    """A model, and what is known of it."""

    path: Path
    model: PairVPR  # on the CPU, for inference
    facts: dict[str, Any]
    digests: set[str]  # sha256 of files that hold these weights: this one, and the one that it was imported from
    kept: dict[str, Tensor] | None = field(default=None)  # see `set_aside` of models/released.py

    @property
    def stage(self) -> str:
        """stage1, stage2 or `ENCODER_ONLY`; a model that does not say is taken for a finished one."""
        return str(self.facts.get("stage", "stage2"))

    @property
    def numbers(self) -> int:
        """How many numbers the model has."""
        return sum(tensor.numel() for tensor in self.model.state_dict().values())

    @property
    def summary(self) -> str:
        """What it is, in a line for users."""
        config = self.model.config
        kind = f"{self.stage} by SUP-VPR" if config.city_blocks else self.stage
        return f"{kind}, {config.encoder}, {config.image_size} px, {self.numbers / 1e6:,.1f} M numbers"


def open_source(path: Path) -> Source:
    """The model of a run folder, a stage's folder, a checkpoint, an export folder or a released file.

    Raises `UserError` for anything else, and for a run that has not ended.
    """
    if path.name in (LATEST, BEST) and path.is_file():
        path = path.parent / path.read_text(encoding="utf-8").strip()
    if not path.is_dir():
        return open_file(path)
    if (path / STATE).exists():
        return _of_checkpoint(path)
    places = [path, path / "export", *(path / stage / "export" for stage in ("stage2", "stage1"))]
    for folder in places:
        if (folder / "config.json").exists():
            return _of_export(folder)
    pointers = sorted(path.glob(f"**/checkpoints/{LATEST}"))
    if pointers:
        raise UserError(f"{path}: has no export yet; name one of its checkpoints, as {pointers[-1]}")
    raise UserError(f"{path}: holds no model; name a run folder, a checkpoint, an export folder or a released .pth")


def open_file(path: Path) -> Source:
    """The model in a released Pair-VPR file, or a new one around the DINOv2 encoder in a file."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file (pairvpr export takes runs and export folders)")
    content = read_tensors(path)
    state = state_in(content, path)
    # What starts from scratch is the same at every call, so that importing a file twice gives the same bytes.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if is_released(state):
            source = _of_released(path, state)
        elif is_dinov2(state):
            source = _around_encoder(path, state)
        else:
            begins = ", ".join([*state][:3]) or "nothing"
            raise UserError(f"{path}: neither a released Pair-VPR file nor a DINOv2 encoder; it begins with {begins}")
    source.facts |= {key: content[key] for key in ("epoch", "global_iter") if isinstance(content.get(key), int)}
    widened = sorted({str(t.dtype).removeprefix("torch.") for t in state.values()} - {"float32"})
    if widened:
        source.facts["numbers of the file"] = f"{', '.join(widened)}, here float32"
    source.model.eval()
    return source


def _of_released(path: Path, state: dict[str, Tensor]) -> Source:
    config, ours = from_released(state, path)
    model, absent = PairVPR(config), absent_heads(ours)
    load_model_state(model, ours, path)
    facts: dict[str, Any] = {"stage": "stage1" if "decoder.class_token" in absent else "stage2"}
    return _imported(path, model, facts, absent, set_aside(state))


def _around_encoder(path: Path, state: dict[str, Tensor]) -> Source:
    if not {"register_tokens", "reg_token"} & state.keys():
        raise UserError(f"{path}: a DINOv2 encoder without register tokens; take the one with 4 (reg4)")
    model = PairVPR(_published_config(state, path))
    load_encoder(model, path)
    log.warning("%s is an encoder alone: decoder and heads start from scratch, the model recognises nothing yet", path)
    absent = ["decoder.", "pixel_head.", "descriptor_head.", "pair_head."]
    absent += [] if "mask_token" in state else ["encoder.mask_token"]
    return _imported(path, model, {"stage": ENCODER_ONLY}, absent, None)


def _published_config(state: dict[str, Tensor], path: Path) -> ModelConfig:
    """The published model around an encoder of this shape, for stage 1."""
    token = state["cls_token"]
    if token.ndim != 3:
        raise UserError(f"{path}: cls_token has the shape {tuple(token.shape)}; it should be (1, 1, C)")
    width, depth = token.shape[-1], count_blocks(state, "blocks", path)
    for size in sorted(file.stem for file in (CONFIGS / "stage1").glob("*.yaml") if file.stem != "default"):
        config: ModelConfig = load_config("stage1", size, ["data.shards=none"]).model
        shape = PRESETS[config.encoder]
        if (shape.dim, shape.depth) == (width, depth):
            return config
    raise UserError(f"{path}: no model has an encoder {width} wide and {depth} blocks deep")


def _imported(
    path: Path, model: PairVPR, facts: dict[str, Any], absent: list[str], kept: dict[str, Tensor] | None
) -> Source:
    digest = weights_digest(path)
    facts |= {"file": path.name, FILE_DIGEST: digest}
    if absent:
        facts[FROM_SCRATCH] = [head.strip(".") for head in absent]
    return Source(path, model, facts, {digest}, kept)


def _of_export(folder: Path) -> Source:
    model = PairVPR.from_pretrained(folder)
    facts = read_json(folder / "config.json", "the config.json of an export folder").get("facts", {})
    _check_facts(facts, folder / "config.json")
    digests = {weights_digest(folder), facts.get(FILE_DIGEST, "")} - {""}
    kept = read_tensors(folder / KEPT) if (folder / KEPT).exists() else None
    shapes = [kept[key].shape for key in (CLASS_TOKEN, CLASS_POSITION) if key in kept] if kept is not None else []
    if kept is not None and shapes != [model.state_dict()["encoder.vit.cls_token"].shape] * 2:
        raise UserError(f"{folder / KEPT}: not what was kept of a released file for this model; import that file again")
    return Source(folder, model, facts, digests, kept)


def _check_facts(facts: Any, where: Path) -> None:
    """What is read of an export's facts has its type."""
    if not isinstance(facts, dict):
        raise UserError(f"{where}: 'facts' is no table of facts; export the model again")
    for key, (right, what) in {
        FILE_DIGEST: (isinstance(facts.get(FILE_DIGEST, ""), str), "no text"),
        FROM_SCRATCH: (_all_of(str, facts.get(FROM_SCRATCH, [])), "no list of names"),
        RESULTS: (_are_results(facts.get(RESULTS, [])), "no list of results"),
    }.items():
        if not right:
            raise UserError(f"{where}: its fact '{key}' is {what}; export the model again")


def _are_results(values: Any) -> bool:
    """Whether a model card can be written of them."""
    if not _all_of(dict, values):
        return False
    try:
        results_table(values)
    except (KeyError, TypeError, AttributeError, ValueError):
        return False
    return True


def _all_of(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _of_checkpoint(path: Path) -> Source:
    from pairvpr_dist.training.facts import training_facts  # with it comes DeepSpeed, slow to import

    fault = find_fault(path)
    if fault is not None:
        raise UserError(f"{path}: damaged: {fault}; name another checkpoint")
    state = read_json(path / STATE, "a checkpoint's state")
    try:
        config = training_config(state["config"], str(path / STATE))
        progress = Progress(**state["progress"])
    except (UserError, KeyError, TypeError) as error:
        remedy = "use the export/ of its run, or that version"
        raise UserError(f"{path}: made by another version of this program ({error}); {remedy}") from None
    model = PairVPR(config.model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(Checkpoint(path).weights(shapes))
    lines = read_json_lines(path.parent.parent / "metrics.jsonl")
    until = [line for line in lines if line.get("step", 0) <= progress.step]
    facts = training_facts(config, progress, until)
    return Source(path, model.eval(), facts, set())
