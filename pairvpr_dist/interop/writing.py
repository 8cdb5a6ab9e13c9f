"""A model out: as an export folder, or as a file of the form that Pair-VPR's authors released.

Contract: every form is a new folder, whole or not there, with a model card. A released file that was imported and is
written again holds the same state dict, bit for bit; any other model comes back from a released file bit for bit, but
for the heads that the form has no place for in stage 1. Numbers are fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import new_folder, write_text
from pairvpr_dist.interop.sources import ENCODER_ONLY, FROM_SCRATCH, KEPT, RESULTS, Source
from pairvpr_dist.models.card import model_card
from pairvpr_dist.models.pair_scorer import require_pair_classifier
from pairvpr_dist.models.released import HEAD_WIDTH, to_released
from pairvpr_dist.retrieval.results import read_results

RELEASED = "pairvpr.pth"
CALIBRATION = "calibration"  # of the fact by which pair scores become probabilities


def add_results(source: Source, evaluations: list[Path]) -> None:
    """Note what was measured of these weights, beside what was noted before of other protocols and splits.

    The calibration is that of the first evaluation, none where that has none. Raises `UserError` for an evaluation of
    other weights, and for weights that are in no file that could have been evaluated.
    """
    if evaluations and not source.digests:
        raise UserError(f"{source.path}: no evaluation is of a checkpoint; export it first and evaluate the export")
    measured = [read_results(folder) for folder in evaluations]
    for folder, results in zip(evaluations, measured, strict=True):
        if results["model"]["sha256"] not in source.digests:
            other = results["model"]["path"]
            raise UserError(f"{folder}: measured {other}, which has other weights than {source.path}")
    if measured:
        new = {(results["protocol"], results["split"]) for results in measured}
        before = source.facts.get(RESULTS, [])
        kept = [results for results in before if (results.get("protocol"), results.get("split")) not in new]
        source.facts[RESULTS] = [*kept, *(_told(results) for results in measured)]
        source.facts.pop(CALIBRATION, None)
        if measured[0].get(CALIBRATION):
            source.facts[CALIBRATION] = measured[0][CALIBRATION]


def _told(results: dict[str, Any]) -> dict[str, Any]:
    """Of an evaluation, what is needed to say what was measured and to compare it."""
    keys = ("protocol", "split", "deviation", "queries", "database", "top_k", "image_size", "precision")
    figures = ("queries_counted", "descriptor_recall", "reranked_recall")
    return {key: results.get(key) for key in keys} | {
        "ground_truths": {
            name: {figure: truth[figure] for figure in figures} for name, truth in results["ground_truths"].items()
        },
    }


def write_safetensors(source: Source, out: Path) -> list[str]:
    """An export folder: `model.safetensors`, `config.json` and the card. Returns what it tells the user."""
    with new_folder(out) as folder:
        source.model.save_pretrained(folder, source.facts)
        if source.kept is not None:
            save_file(source.kept, folder / KEPT)
    return []


def write_released(source: Source, out: Path) -> list[str]:
    """`pairvpr.pth` under the authors' names: for stage 2 the state dict, for stage 1 the state dict as `model`."""
    if source.stage == ENCODER_ONLY:
        raise UserError(f"{source.path}: an encoder with untrained decoder and heads; a released file has them trained")
    require_pair_classifier(source.model, str(source.path))
    config = source.model.config
    if config.decoder_dim != HEAD_WIDTH * config.decoder_heads:
        raise UserError(f"{source.path}: {config.decoder_heads} decoder heads; a released file does not say how many, "
                        f"its readers take one per {HEAD_WIDTH} of the width {config.decoder_dim}")  # fmt: skip
    first = source.stage == "stage1"
    absent = source.facts.get(FROM_SCRATCH, ["decoder.class_token"]) if first else []
    state = to_released(source.model.state_dict(), source.kept, absent)
    with new_folder(out) as folder:
        torch.save({"model": state} if first else state, folder / RELEASED)
        write_card(source, folder, loads=f"{out.name}/{RELEASED}")
    return [f"without {', '.join(absent)}, which a file of stage 1 has no place for"] if first else []


def write_card(source: Source, folder: Path, loads: str | None) -> None:
    """The model card beside files of another form; `loads`: what `PairVPR.from_pretrained` takes of them."""
    write_text(folder / "README.md", model_card(source.model.config, source.facts, source.numbers, loads))
