"""The whole of it on the synthetic city: city, shards, both stages, evaluation, report.

Contract: everything lies below the run folder; a second call goes on where the first was stopped. What it prints is
read from the files that the stages wrote.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launchers.jobs import jobs
from pairvpr_dist.files import read_json, read_json_lines

PLACES, TEST_PLACES, SEED = 240, 80, 0
TEST_VIEWS = 6  # of a test place: 4 in the database, 2 queries


def demo(overrides: Sequence[str]) -> None:
    """Run the demo; `overrides` are those of `pipeline tiny`. Raises `UserError`."""
    from launchers.local import check_all, run, run_evaluation

    started = time.perf_counter()
    folder = _run_folder(overrides)
    city, shards = folder / "city", folder / "shards"
    configs = jobs("pipeline", "tiny", [
        f"run={folder}", f"data.shards={shards / 'train'}", f"stage1.data.validation={shards / 'test'}",
        f"eval.data={city / 'test'}", f"launch.processes={processes()}", *overrides,
    ])  # fmt: skip
    make_city(city)
    make_shards(city, shards)
    check_all(configs)
    evaluate_untrained(configs[1], configs[2], folder)
    run(configs[:2])
    run_evaluation(configs[2])
    print(summary(folder))
    print(f"{time.perf_counter() - started:.0f} s; look at {folder / 'report.html'}")


def processes() -> int:
    """Two, or one where there is a single GPU."""
    import torch

    return min(2, torch.cuda.device_count() or 2)


def make_city(city: Path) -> None:
    """Write the photographs of the city, unless they are there."""
    from shards.synthetic_city import write_folder

    if not city.exists():
        write_folder(city, PLACES, TEST_PLACES, SEED, database_views=4, query_views=TEST_VIEWS - 4, workers=2)


def make_shards(city: Path, shards: Path) -> None:
    """Build the training shards from the photographs, and shards of the test places to measure stage 1 on."""
    from shards.build import main as build
    from shards.synthetic_city import TEST_WORLD

    if not (shards / "train").exists():
        build(["folder", "--source", str(city / "train"), "--out", str(shards / "train"), "--dataset", "city"])
    if not (shards / "test").exists():
        build(["synthetic", "--places", str(TEST_PLACES), "--views", str(TEST_VIEWS), "--seed", str(SEED + TEST_WORLD),
               "--out", str(shards / "test")])  # fmt: skip


def evaluate_untrained(training: Any, evaluation: Any, folder: Path) -> None:
    """Measure the model before its first step, as what training has to beat."""
    from dataclasses import replace

    import torch

    from pairvpr_dist import PairVPR
    from pairvpr_dist.retrieval.evaluate import evaluate_model
    from pairvpr_dist.retrieval.results import RESULTS

    model, out = folder / "untrained", folder / "eval-untrained"
    if not model.exists():
        torch.manual_seed(training.seed)
        PairVPR(training.model).save_pretrained(model, {"stage": "untrained"})
    torch.set_num_threads(1)  # with more, a model this small waits for threads most of the time
    if not (out / RESULTS).exists():
        evaluate_model(replace(evaluation.eval, model=str(model)), out)


def summary(folder: Path) -> str:
    """What the run learned, in five lines, from the files it wrote."""
    from pairvpr_dist.retrieval.results import RESULTS

    untrained, trained = (
        next(iter(read_json(folder / name / RESULTS, "the results of an evaluation")["ground_truths"].values()))
        for name in ("eval-untrained", "eval")
    )
    gains = [line["validation/cross_view_gain"] for line in read_json_lines(folder / "stage1" / "metrics.jsonl")
             if "validation/cross_view_gain" in line]  # fmt: skip
    rows = {
        "untrained, descriptor only": untrained["descriptor_recall"]["1"],
        "untrained, re-ranked": untrained["reranked_recall"]["1"],
        "trained, descriptor only": trained["descriptor_recall"]["1"],
        "trained, re-ranked": trained["reranked_recall"]["1"],
    }
    lines = [f"  {name:<28}{value:6.1f} %" for name, value in rows.items()]
    return "\n".join([
        "Recall@1 on a city that training never saw:", *lines,
        f"Cross-view gain of stage 1 on its places: {gains[-1]:.3f} "
        "(loss with a wrong second view minus loss with the right one)",
    ])  # fmt: skip


def _run_folder(overrides: Sequence[str]) -> Path:
    given = [text.partition("=")[2] for text in overrides if text.startswith("run=")]
    return Path(given[-1] if given else "runs/demo")
