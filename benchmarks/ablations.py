"""What stage 1, places and re-ranking are worth: the first rows of the paper's table of ablations, at small size.

    python benchmarks/ablations.py --out runs/ablations
    python benchmarks/ablations.py --out runs/photos --shards photos-shards --data photos --seeds 0 model.image_size=112

Contract: every arm trains on the same images with the same recipe, but for the pairs of its stage 1: two images of a
place, two strongly augmented copies of one image, or no stage 1 at all. The seed names the weights, the order and,
without --shards, the city. A call goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean

from pairvpr_dist.errors import exit_on_user_error
from pairvpr_dist.files import read_json, write_json

COPIES = ["data.augment.copies=true", "data.augment.crop_area=[0.4,1.0]", "data.augment.rand_augment_ops=2"]
ARMS: dict[str, list[str] | None] = {  # what is changed in stage 1; None: there is none
    "no stage 1": None,
    "copies of one image": COPIES,
    "places": [],
}
PLACES, TEST_PLACES = 240, 80
LAUNCHER = Path(__file__).parents[1] / "launchers" / "local.py"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder of all runs")
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N,...", help="default: %(default)s")
    parser.add_argument("--arms", default=",".join(ARMS), metavar="ARM,ARM,...", help="default: %(default)s")
    parser.add_argument("--shards", type=Path, help="shards to train on (default: a synthetic city for each seed)")
    parser.add_argument("--data", type=Path, help="photographs to evaluate on, with --shards")
    parser.add_argument("override", nargs="*", metavar="STAGE.KEY=VALUE", help="for every arm")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    found = {
        arm: [run_arm(arm, seed, *data_of(args, seed), args.out, args.override) for seed in seeds]
        for arm in args.arms.split(",")
    }
    write_json(args.out / "ablations.json", {"seeds": seeds, "arms": found})
    print(table(found, seeds))


def data_of(args: argparse.Namespace, seed: int) -> tuple[Path, Path]:
    """Shards to train on and photographs to evaluate on; a synthetic city is made where none are given."""
    if args.shards is not None:
        return args.shards, args.data
    from shards.build import main as build
    from shards.synthetic_city import write_folder

    city, shards = args.out / f"city-{seed}", args.out / f"shards-{seed}"
    if not city.exists():
        write_folder(city, PLACES, TEST_PLACES, seed, workers=1)
    if not shards.exists():
        build(["folder", "--source", str(city / "train"), "--out", str(shards), "--dataset", "city"])
    return shards, city / "test"


def run_arm(arm: str, seed: int, shards: Path, data: Path, out: Path, overrides: list[str]) -> dict[str, dict]:
    """Train and evaluate one arm; figures by ground truth."""
    run = out / f"{arm.replace(' ', '-')}-{seed}"
    given = [f"run={run}", f"data.shards={shards}", f"seed={seed}"]
    own = {stage: [text.removeprefix(f"{stage}.") for text in overrides if text.startswith(f"{stage}.")]
           for stage in ("stage1", "stage2", "eval")}  # fmt: skip
    common = [text for text in overrides if not text.startswith(("stage1.", "stage2.", "eval."))]
    changes = ARMS[arm]
    start = []
    if changes is not None:
        launch("stage1", [*given, *common, *own["stage1"], *changes])
        start = [f"init.model={run / 'stage1' / 'export'}"]
    launch("stage2", [*given, *common, *own["stage2"], *start])
    launch("eval", [f"run={run}", f"eval.model={run / 'stage2' / 'export'}", f"eval.data={data}",
                    *(f"eval.{text}" for text in own["eval"])])  # fmt: skip
    return read_json(run / "eval" / "results.json", "the results of an evaluation")["ground_truths"]


def launch(stage: str, overrides: list[str]) -> None:
    """One stage at size tiny; what has ended before is left as it is."""
    print(f"{stage} {' '.join(overrides)}", file=sys.stderr)
    subprocess.run([sys.executable, str(LAUNCHER), stage, "tiny", *overrides], check=True, stdout=subprocess.DEVNULL)


def table(found: dict[str, list[dict[str, dict]]], seeds: list[int]) -> str:
    """Recall@1 by descriptor and re-ranked: the mean and every seed, for each ground truth."""
    lines = []
    for truth in next(iter(found.values()))[0]:
        lines.append(f"{truth}: recall@1, mean of seeds {', '.join(map(str, seeds))} (each)")
        for arm, results in found.items():
            cells = []
            for key in ("descriptor_recall", "reranked_recall"):
                values = [result[truth][key]["1"] for result in results]
                cells.append(f"{mean(values):5.1f} ({', '.join(f'{value:.1f}' for value in values)})")
            lines.append(f"  {arm:<20} descriptor {cells[0]:<28} re-ranked {cells[1]}")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_user_error(main)
