"""What bf16 changes: losses, gradients, descriptors and pair scores, against fp32 without TF32.

Contract: training is the engine's in both precisions, with the same weights and the same batch of rendered places, at
the first step (gradients) and after `STEPS` updates on that batch. Inference is `Describer` in both, as evaluation
runs it. Weights are random where no model is given: then scores hardly differ, and the best candidate says little. How
far directions are apart is 1 - cosine: of all gradients together, and the largest of a single parameter whose gradient
is not rounding alone, as that of a bias of keys is, on which attention does not depend.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.gpu.part import Cell, Table, device, open_table
from benchmarks.step_worker import LATE, Steps
from pairvpr_dist.config import load_config
from pairvpr_dist.data.augmentation import normalise
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.retrieval.describe import Describer
from pairvpr_dist.settings import TrainingConfig
from shards.city.places import City

STEPS = 10
NOISE = 1e-5  # of the norm of the gradient
PRECISIONS = ("fp32", "bf16")
QUERIES = 8  # each with all images of the other places and visits as candidates


class Seen(NamedTuple):
    """What training in one precision gave."""

    loss: float
    gradients: dict[str, Tensor]  # fp32, on the CPU
    skipped: int  # updates for a gradient that is not finite
    last_loss: float


def main() -> None:
    """The program."""
    table = open_table()
    sizes, places = (("tiny",), 4) if table.small else (("vits", "vitb"), 8)
    steps = Steps("ours")
    for size in sizes:
        for stage in ("stage1", "stage2"):
            add_training(table, steps, size, stage, places)
    steps.close()
    add_inference(table, sizes[-1], places)


def add_training(table: Table, steps: Steps, size: str, stage: str, places: int) -> None:
    """The rows of one size and stage."""
    config = load_config(stage, size, ["data.shards=none", f"data.places_per_batch={places}"])
    batch = rendered(config)
    seen = {precision: train(steps, config, batch, precision, 2 if table.small else STEPS) for precision in PRECISIONS}
    exact, rounded = (seen[precision] for precision in PRECISIONS)
    whole = [torch.cat([g.flatten() for g in found.gradients.values()]) for found in (exact, rounded)]
    least = NOISE * whole[0].norm()
    cosines = {n: cosine(g, rounded.gradients[n]) for n, g in exact.gradients.items() if g.norm() > least}
    worst = min(cosines, key=lambda name: cosines[name])
    what = f"{size} {stage}"
    for name, value in {
        "loss, fp32": exact.loss,
        "loss, bf16, off by, %": 100 * (rounded.loss / exact.loss - 1),
        "gradients apart": 1 - cosine(*whole),
        "norm of the gradient, off by, %": 100 * float(whole[1].norm() / whole[0].norm() - 1),
        f"furthest apart, {worst}": 1 - cosines[worst],
        "numbers of the gradient that are not finite": int((~whole[1].isfinite()).sum()),
        "loss after updates on this batch, fp32": exact.last_loss,
        "the same, bf16": rounded.last_loss,
        "updates skipped, bf16": rounded.skipped,
    }.items():
        table.add({"of": what, "what": name, "value": value})


def rendered(config: TrainingConfig) -> Batch:
    """Photographs of a synthetic city."""
    places, views, size = config.data.places_per_batch, config.data.images_per_place, config.model.image_size
    city = City(0, places, views)
    shots = [[replace(view, width=size, height=size) for view in place.views[:views]] for place in city.places]
    pixels = torch.from_numpy(np.stack([[city.render(view) for view in visits] for visits in shots]))
    keys = torch.randint(0, 2**62, (places, views), generator=torch.Generator().manual_seed(1))
    ids = torch.arange(places)
    return Batch(pixels.permute(0, 1, 4, 2, 3), keys, ids, *[torch.zeros_like(ids)] * 2).to(device())


def train(steps: Steps, config: TrainingConfig, batch: Batch, precision: str, updates: int) -> Seen:
    """An engine's life in one precision."""
    steps.build(replace(config, train=replace(config.train, precision=precision, compile="none", zero_stage=2)))
    engine = steps.step
    loss, _ = engine.forward(batch, LATE)
    engine.engine.backward(loss)
    named = ((n, p) for n, p in engine.objective.model.named_parameters() if p.requires_grad)
    gradients = {name: safe_get_full_grad(parameter).float().cpu() for name, parameter in named}
    engine.engine.step()
    skipped = int(not engine.engine.was_step_applied())
    last = loss
    for _ in range(updates):
        last, _, applied = engine.train_on(batch, LATE)
        skipped += not applied
    return Seen(float(loss.detach()), gradients, skipped, float(last))


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two tensors, flattened, in fp64: in fp32 it can be above 1."""
    return float(cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


def add_inference(table: Table, size: str, places: int) -> None:
    """The rows of descriptors and scores."""
    config = load_config("stage2", size, ["data.shards=none", f"data.places_per_batch={places}"])
    torch.manual_seed(0)
    model = PairVPR.from_pretrained(table.model) if table.model else PairVPR(config.model)
    images = normalise(rendered(replace(config, model=model.config)).images.flatten(0, 1))
    exact, rounded = (described(model, size, precision, images) for precision in PRECISIONS)
    rows = [[i for i in range(len(images)) if i != query] for query in range(min(QUERIES, len(images)))]
    best = [[int(found.scores[q, others].argmax()) for q, others in enumerate(rows)] for found in (exact, rounded)]
    deviation = (exact.scores - rounded.scores).abs()
    agreeing = sum(one == other for one, other in zip(*best, strict=True))
    values: dict[str, Cell] = {
        "weights": table.model or "random",
        "descriptors at most apart": 1 - min(map(cosine, exact.descriptors, rounded.descriptors)),
        "largest deviation of a score": float(deviation.max()),
        "spread of the scores, fp32": float(exact.scores.std()),
        "queries with the same best candidate, %": 100 * agreeing / len(rows),
        "numbers that are not finite": int(
            (~rounded.scores.isfinite()).sum() + (~rounded.descriptors.isfinite()).sum()
        ),
    }
    for name, value in values.items():
        table.add({"of": f"{size} inference", "what": name, "value": value})


class Inferred(NamedTuple):
    """What a model in one precision makes of images."""

    descriptors: Tensor  # (M, D)
    scores: Tensor  # (Q, M), of the first images with all


def described(model: PairVPR, size: str, precision: str, images: Tensor) -> Inferred:
    """As an evaluation describes and scores."""
    settings: Any = load_config("eval", size, ["eval.model=none", "eval.data=none", f"eval.precision={precision}"])
    describer = Describer(model, settings.eval)
    with torch.inference_mode(), describer.autocast():
        description = describer.model.describe(images)
    projected = describer.project(description.dense).to(device())
    scorer = describer.scorer
    rows = [scorer.scores(scorer.query(one), projected) for one in projected[:QUERIES]]
    return Inferred(description.descriptors.float().cpu(), torch.stack(rows).float().cpu())


if __name__ == "__main__":
    main()
