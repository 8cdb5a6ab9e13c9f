"""SUP-VPR against Pair-VPR where few places of a city are known.

    python benchmarks/low_data.py --out runs/low_data
    python benchmarks/low_data.py --out runs/low_data --shares 0.1 --seeds 0 --places 40

Contract: four synthetic cities with characters of their own; a part of their places is trained on, other streets of the
same cities are searched. All recipes start from one encoder, a stage 1 on another synthetic city (in the place of
DINOv2), and take the same steps of the same batch. The seed names weights and order. A call goes on where one was
stopped. Writes low_data.json, table.md and low_data.png into the folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

from tqdm import tqdm

from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.files import read_json, write_json, write_text

Number = TypeVar("Number", int, float)

SUPVPR = ["objective=supvpr"]
WITH_SYNTHETIC = ["data.synthetic={synthetic}"]
RECIPES: dict[str, list[str]] = {
    "Pair-VPR": ["data.single_city=false", "objective.pair_loss_warmup_steps=[50,150]"],
    "SUP-VPR": [*SUPVPR, *WITH_SYNTHETIC],
    "SUP-VPR, random negatives": [*SUPVPR, *WITH_SYNTHETIC, "objective.mining=random"],
    "SUP-VPR, no synthetic places": SUPVPR,
}
CITIES, TEST_PLACES, SYNTHETIC_PLACES, STAGE1_EPOCHS = 4, 40, 240, 100
SAME = ["train.epochs=100000", "optim.warmup_epochs=0", "train.self_check=false", "train.checkpoint_every=100000",
        "data.places_per_batch=16", "launch.threads=1"]  # fmt: skip
LAUNCHER = Path(__file__).parents[1] / "launchers" / "local.py"
FIGURES = {
    "city": ("city recognised", lambda c: c["accuracy"]["reranked"]),
    "city_by_descriptor": ("city of the nearest descriptor", lambda c: c["accuracy"]["descriptor"]),
    "within_1": ("R@1 within the right city", lambda c: c["within"]["1"]),
    "within_5": ("R@5 within the right city", lambda c: c["within"]["5"]),
    "over_all_1": ("R@1 over all cities, two stages", lambda c: c["over_all"]["reranked"]["1"]),
    "over_all_5": ("R@5 over all cities, two stages", lambda c: c["over_all"]["reranked"]["5"]),
    "descriptor_1": ("R@1 over all cities, descriptor", lambda c: c["over_all"]["descriptor"]["1"]),
    "descriptor_5": ("R@5 over all cities, descriptor", lambda c: c["over_all"]["descriptor"]["5"]),
}
PLOTTED = ("city", "within_1", "descriptor_1", "over_all_1")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/low_data"), help="folder of all runs")
    parser.add_argument("--shares", default="0.1,0.3,1", metavar="X,X,...", help="of the places (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N,...", help="default: %(default)s")
    parser.add_argument("--recipes", default=";".join(RECIPES), metavar="A;B;...", help="default: %(default)s")
    parser.add_argument("--places", type=int, default=100, help="of each city, where the share is 1 (default: 100)")
    parser.add_argument("--steps", type=int, default=200, help="of stage 2 (default: 200)")
    parser.add_argument("override", nargs="*", metavar="KEY=VALUE", help="for stage 2 of every recipe")
    args = parser.parse_args()
    if unknown := set(args.recipes.split(";")) - set(RECIPES):
        raise UserError(f"--recipes: no {', '.join(sorted(unknown))}; there are {'; '.join(RECIPES)}")
    shares, seeds = numbers("--shares", args.shares, float), numbers("--seeds", args.seeds, int)
    if args.places < 1 or not all(0 < share <= 1 for share in shares):
        raise UserError("--places must be at least 1, and each of --shares above 0 and at most 1")
    args.out.mkdir(parents=True, exist_ok=True)
    prepare(args.out, [places_of(share, args.places) for share in shares])
    points = [(recipe, share, seed) for seed in seeds for share in shares for recipe in args.recipes.split(";")]

    def run(point: tuple[str, float, int]) -> dict[str, Any]:
        recipe, share, seed = point
        return {"recipe": recipe, "share": share, "seed": seed} | run_point(args, recipe, share, seed)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # each run is a process of one thread
        rows = list(tqdm(pool.map(run, points), "runs", len(points), unit="run", disable=None))
    write_json(args.out / "low_data.json", {"places": args.places, "steps": args.steps, "rows": rows})
    write_text(args.out / "table.md", table(rows, args.places))
    draw(rows, args.places, args.out / "low_data.png")
    print(table(rows, args.places))


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """The numbers between commas. Raises `UserError`."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}={text}: write numbers with commas between them") from None


def places_of(share: float, places: int) -> int:
    """How many places of each city a share of all `places` is."""
    return max(1, round(share * places))


def prepare(out: Path, counts: list[int]) -> None:
    """Photographs and shards for so many places of each city, and the encoder that all recipes start from."""
    from shards.build import main as build
    from shards.synthetic_city import write_format

    cores = len(os.sched_getaffinity(0))
    for count in counts:
        tree, shards = out / f"cities-{count}", out / f"shards-{count}"
        if not tree.exists():
            write_format(tree, "cities", cores, places=count, test_places=TEST_PLACES, cities=CITIES)
        if not shards.exists():
            build(["gsv-cities", "--source", str(tree / "train"), "--out", str(shards), "--dataset", "cities"])
    if not (out / "synthetic").exists():
        build(["synthetic", "--places", str(SYNTHETIC_PLACES), "--views", "8", "--seed", "7", "--size", "96",
               "--out", str(out / "synthetic")])  # fmt: skip
    launch("stage1", [f"run={out / 'encoder'}", f"data.shards={out / 'synthetic'}",
                      f"train.epochs={STAGE1_EPOCHS}", "train.self_check=false"])  # fmt: skip


def run_point(args: argparse.Namespace, recipe: str, share: float, seed: int) -> dict[str, Any]:
    """Train and evaluate one recipe; its figures by `FIGURES`."""
    out: Path = args.out
    count = places_of(share, args.places)
    run = out / f"{'-'.join(recipe.replace(',', '').split())}-{count}-{seed}"
    own = [change.format(synthetic=out / "synthetic") for change in RECIPES[recipe]]
    launch("stage2", [f"run={run}", f"data.shards={out / f'shards-{count}'}", f"seed={seed}",
                      f"init.model={out / 'encoder/stage1/export'}", f"train.max_steps={args.steps}",
                      *SAME, *own, *args.override])  # fmt: skip
    launch("eval", [f"run={run}", f"eval.model={run / 'stage2/export'}", f"eval.data={out / f'cities-{count}/test'}",
                    "eval.protocol=cities", "launch.threads=1"])  # fmt: skip
    found = read_json(run / "eval" / "results.json", "the results of an evaluation")["cities"]
    return {name: of(found) for name, (_, of) in FIGURES.items()}


def launch(stage: str, overrides: list[str]) -> None:
    """One stage at size tiny; what has ended before is left as it is."""
    command = [sys.executable, str(LAUNCHER), stage, "tiny", *overrides]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise UserError(f"{' '.join(command)}: {(ended.stderr.strip().splitlines() or ['ended with an error'])[-1]}")


def of_point(rows: list[dict[str, Any]], recipe: str, share: float, figure: str) -> list[float]:
    """A figure of every seed."""
    return [row[figure] for row in rows if (row["recipe"], row["share"]) == (recipe, share)]


def table(rows: list[dict[str, Any]], places: int) -> str:
    """Markdown: a line a share and recipe, the mean over seeds and their range."""
    head = ["places", "recipe", *(title for title, _ in FIGURES.values())]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for share in sorted({row["share"] for row in rows}):
        for recipe in dict.fromkeys(row["recipe"] for row in rows):
            cells = [f"{share:.0%} ({CITIES} x {places_of(share, places)})", recipe]
            for figure in FIGURES:
                values = of_point(rows, recipe, share, figure)
                cells.append(f"{mean(values):.1f} ({min(values):.1f}-{max(values):.1f})")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], places: int, file: Path) -> None:
    """A panel for each figure of `PLOTTED`: its mean over the share of places, and every seed as a point."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    shares = sorted({row["share"] for row in rows})
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    for number, (name, axes) in enumerate(zip(PLOTTED, figure.subplots(2, 2).flat, strict=True)):
        for colour, recipe in zip(mpl.color_sequences["tab10"], recipes, strict=False):
            values = [of_point(rows, recipe, share, name) for share in shares]
            axes.plot(shares, [mean(v) for v in values], "o-", color=colour, label=recipe)
            for share, each in zip(shares, values, strict=True):
                axes.plot([share] * len(each), each, ".", color=colour, alpha=0.5)
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:.0%}\n{CITIES} x {places_of(share, places)}" for share in shares])
        axes.minorticks_off()
        axes.set_title(FIGURES[name][0])
        axes.set_ylabel("% of queries")
        axes.grid(alpha=0.3)
        if number == 0:
            axes.legend(fontsize=8)
    figure.supxlabel("places trained on")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    exit_on_user_error(main)
