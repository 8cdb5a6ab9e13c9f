"""A step that went wrong, kept on disk and run again alone.

    <stage>/replays/step-NNNNNNNN/   the step as the log counts it
        model.safetensors            the weights before the step, fp32
        rank-NNN.safetensors         the batch of each rank
        replay.json                  step, stage, precision, places, what was found, configuration, commit

Contract: a replay is whole or not there, and one that cannot be written never ends a run. Reading it needs one process,
no shards and no launcher; it is safetensors and JSON, checked.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pairvpr_dist import distributed
from pairvpr_dist.config import STAGES, config_from_dict, to_dict, training_config
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.distributed import gather_objects, gather_to_rank_0
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import new_folder, read_json, write_json
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.models.weights import load_model_state, read_tensors
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.objectives.base import Objective
from pairvpr_dist.objectives.masked_modelling import MaskedModelling
from pairvpr_dist.settings import Stage2Config, TrainingConfig
from pairvpr_dist.training.deepspeed_config import uses_bf16
from pairvpr_dist.training.diagnosis import NOWHERE, Event, Finding, Observer, Sighting, conclude
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.facts import commit

log = logging.getLogger(__name__)

FOLDER = "replays"
FILE = "replay.json"
FORMAT = "pairvpr-replay/2"  # 2: batches know cities
SHOWN_PLACES = 5
REPLAYS = 3  # of one run; each holds the whole model


@dataclass
class Replay:
    """What replay.json says beside the configuration."""

    step: int  # as the objective counts it: steps done before
    bf16: bool
    zero_stage: int
    datasets: list[str]  # that `Batch.datasets` counts
    places: list[list[str]]  # of each rank's batch
    finding: Finding
    commit: str


def replay_path(folder: Path, step: int) -> Path:
    """Where the replay of a step lies that `step` steps came before."""
    return folder / FOLDER / f"step-{step + 1:08d}"


def write_replay(
    engine: Engine, batch: Batch, step: int, names: list[str], finding: Finding, folder: Path, config: TrainingConfig
) -> Path | None:
    """Keep a step, with this rank's batch; every rank must call. The replay's folder, None where none was written."""
    path = replay_path(folder, step)
    if not distributed.from_rank_0(lambda: not path.exists() and len(list(path.parent.glob("step-*"))) < REPLAYS):
        return None
    places = gather_objects(names)
    batches = gather_to_rank_0({f.name: getattr(batch, f.name).cpu() for f in fields(batch)})
    weights = engine.full_weights()

    def write() -> str | None:
        assert batches is not None
        assert weights is not None
        stage = config.train.zero_stage
        kept = Replay(step, uses_bf16(config), stage, engine.objective.datasets, places, finding, commit())
        try:
            save_replay(path, kept, weights, batches, config)
        except (OSError, SafetensorError) as error:
            return str(error)
        return None

    failed = distributed.from_rank_0(write)
    if failed and distributed.rank() == 0:
        log.warning("the replay of step %d could not be written: %s", step + 1, failed)
    return None if failed else path


def save_replay(
    path: Path, kept: Replay, weights: dict[str, Tensor], batches: list[dict[str, Tensor]], config: TrainingConfig
) -> None:
    """Write the files. batches: the tensors of each rank's `Batch`."""
    with new_folder(path) as aside:
        save_file(weights, aside / "model.safetensors")
        for rank, tensors in enumerate(batches):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, _batch_file(aside, rank))
        content = {"format": FORMAT, "stage": config.stage, "replay": asdict(kept), "config": to_dict(config)}
        write_json(aside / FILE, content)


def _batch_file(path: Path, rank: int) -> Path:
    return path / f"rank-{rank:03d}.safetensors"


def read_replay(path: Path) -> tuple[Replay, TrainingConfig]:
    """What a replay says of itself. Raises `UserError` for a folder of another kind."""
    where = path / FILE
    content = read_json(where, "a replay's description")
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("stage") not in STAGES:
        raise UserError(f"{where}: not a replay of this version ({FORMAT}); name a folder of a run's replays/")
    config = training_config(content.get("config", {}) | {"stage": content["stage"]}, str(where))
    return config_from_dict(Replay, content.get("replay", {}), str(where)), config


def read_batch(path: Path, rank: int) -> Batch:
    """The batch of one rank. Raises `UserError` when the file is not one."""
    file = _batch_file(path, rank)
    tensors = read_tensors(file)
    if sorted(tensors) != sorted(f.name for f in fields(Batch)):
        raise UserError(f"{file}: holds {', '.join(sorted(tensors))}, not a rank's batch")
    return Batch(**tensors)


@dataclass
class Rerun:
    """A part of the step, run alone: a rank's batch, or where the loss is of all ranks together, all of them."""

    sighting: Sighting
    events: list[Event]
    place_losses: list[float]  # stage 1; else empty


def rerun_step(path: Path, kept: Replay, config: TrainingConfig) -> list[Rerun]:
    """Forward and backward of the step in this process, on its GPU where it has one; no update.

    Stage 1 goes rank by rank and part by part, which is exact and needs no more memory than a rank had.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PairVPR(config.model)
    load_model_state(model, read_tensors(path / "model.safetensors"), path)
    if isinstance(config, Stage2Config):  # all ranks' images in the memory that one of them had
        chunks = config.objective.chunks * len(kept.places)
        if config.train.checkpointing != "none" and len(kept.places) > 1:  # chunks save memory in its place
            chunks *= config.data.images_per_place
        policy = config.train.checkpointing if chunks == 1 else "none"
        config = replace(
            config,
            objective=replace(config.objective, chunks=chunks),
            train=replace(config.train, checkpointing=policy),
        )
    model.run_blocks(config.train.checkpointing)
    objective = build_objective(config, model, kept.datasets).to(device)
    if kept.bf16:  # as DeepSpeed does: parameters, not buffers
        for parameter in objective.parameters():
            parameter.data = parameter.data.bfloat16()
    batches = [read_batch(path, rank) for rank in range(len(kept.places))]
    names = kept.places
    if not isinstance(objective, MaskedModelling):
        batches = [Batch(*(torch.cat([getattr(b, f.name) for b in batches]) for f in fields(Batch)))]
        names = [[name for places in kept.places for name in places]]
    parts = config.train.accumulate
    return [_rerun(objective, b.to(device), parts, kept.step, n) for b, n in zip(batches, names, strict=True)]


def _rerun(objective: Objective, batch: Batch, parts: int, step: int, names: list[str]) -> Rerun:
    with Observer(objective, measure=True) as observer:
        passed = []
        for part in batch.parts(parts):
            loss, _ = objective(part, step)
            (loss / parts).backward()
            passed.append(loss.detach())
    objective.zero_grad()
    loss = torch.stack(passed).mean()
    losses: list[float] = []
    if isinstance(objective, MaskedModelling):
        with torch.no_grad():
            image, other, mask = objective.views(batch)
            losses = objective.losses(image, other, mask).tolist()
    return Rerun(observer.sighting(loss, batch, names), observer.events, losses)


def inspect_replay(path: Path) -> str:
    """Run a replay's step alone and tell what happens in it. Raises `UserError` when it is not whole."""
    kept, config = read_replay(path)
    reruns = rerun_step(path, kept, config)
    found = conclude([rerun.sighting for rerun in reruns])
    same = (found.phase, found.module) == (kept.finding.phase, kept.finding.module) and found.phase != NOWHERE
    ranks = len(kept.places)
    lines = [
        f"step {kept.step + 1} of {config.stage} {config.size}, {'bf16' if kept.bf16 else 'fp32'}, "
        f"{ranks} process{'es' if ranks > 1 else ''}, ZeRO {kept.zero_stage}, commit {kept.commit[:12]}",
        f"recorded    {kept.finding}",
        f"            {len(kept.finding.places)} places: {', '.join(kept.finding.places[:SHOWN_PLACES])}",
        f"run again   {found}",
        f"            {'reproduced' if same else 'NOT REPRODUCED: ' + _why_not(ranks, len(reruns))}",
        "",
        *_losses(kept, reruns),
        "",
        *_around(found, reruns, together=len(reruns) < ranks),
    ]
    return "\n".join(lines).rstrip()


def _why_not(ranks: int, reruns: int) -> str:
    if reruns < ranks:
        return (
            "all ranks' images went through one process, which rounds otherwise; or device, kernels or versions differ"
        )
    return "look at the device that it came from, at its kernels and at the versions"


def _losses(kept: Replay, reruns: list[Rerun]) -> list[str]:
    if len(reruns) < len(kept.places):
        recorded = ", ".join(f"{loss:.6g}" for loss in kept.finding.losses)
        return [f"loss {reruns[0].sighting.loss:.6g} of all ranks together; recorded by rank: {recorded}"]
    lines = []
    for rank, (rerun, names) in enumerate(zip(reruns, kept.places, strict=True)):
        lines.append(f"rank {rank}: loss {rerun.sighting.loss:.6g}, recorded {kept.finding.losses[rank]:.6g}")
        by_loss = sorted(zip(rerun.place_losses, names, strict=False), key=lambda pair: -_or_infinite(pair[0]))
        lines += [f"    {loss:<12.6g} {name}" for loss, name in by_loss]
    return lines


def _or_infinite(loss: float) -> float:
    return loss if loss == loss else float("inf")


def _around(found: Finding, reruns: list[Rerun], together: bool) -> list[str]:
    """What went into and came out of the module where it happened, call by call."""
    rows = [
        (rank, event, *event.measures.tolist())
        for rank in found.ranks
        for event in reruns[rank].events
        if event.name == found.module and event.measures is not None
    ]
    header = [f"{found.module}:", f"    {'rank':<6}{'':<26}{'least':>12}{'greatest':>12}{'finite':>9}"]
    return (header if rows else []) + [
        f"    {'all' if together else rank:<6}{event.what:<26}"
        + (f"{least:>12.4g}{greatest:>12.4g}" if share else f"{'-':>12}{'-':>12}")
        + f"{_share(share):>9}"
        for rank, event, least, greatest, share in rows
    ]


def _share(share: float) -> str:
    """A percentage that says 100 only when it is."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.99):.2f} %"


def facts_of(finding: Finding, path: Path | None) -> dict[str, Any]:
    """What the history says of a step that was skipped."""
    return {
        "places": finding.places,
        "module": finding.module,
        "phase": finding.phase,
        "ranks": finding.ranks,
        "replay": None if path is None else path.name,
    }
