"""`pairvpr match`."""

from __future__ import annotations

import argparse
import csv
import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairvpr_dist.cli import Run, verb
from pairvpr_dist.errors import UserError, one_line

if TYPE_CHECKING:
    from pairvpr_dist.retrieval.place_index import Match, PlaceIndex

log = logging.getLogger(__name__)
FORMAT = "pairvpr-matches/1"
COLUMNS = ("query", "rank", "database", "descriptor_rank", "descriptor_similarity", "pair_score", "probability",
           "east", "north", "zone")  # fmt: skip


@verb(
    "find where photographs were taken among the images of a folder, or compare two images",
    "  pairvpr match --model runs/vitb/stage2/export query.jpg --database photographs/\n"
    "  pairvpr match --model model.pth queries/ --database photographs/ --calibration runs/vitb/eval --out matches\n"
    "  pairvpr match --model runs/vitb/stage2/export query.jpg candidate.jpg",
)
def match(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr match`."""
    parser.add_argument("--model", required=True, type=Path, metavar="PATH", help="an export folder or a released .pth")
    parser.add_argument(
        "queries", nargs="+", metavar="QUERY", help="image files or folders of images; without --database two files"
    )
    parser.add_argument(
        "--database",
        type=Path,
        metavar="DIR",
        help="images in folders of any depth; indexed once, then kept up to date",
    )
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="answers per query (default: 10)")
    parser.add_argument(
        "--calibration", type=Path, metavar="PATH",
        help="an evaluation of this model, for probabilities (default: what the export itself says)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="new folder for a picture of each query, and for tables"
    )
    parser.add_argument(
        "--feature-budget", metavar="GIB", help="disk space for what is stored of the images beside descriptors"
    )

    def run_match(args: argparse.Namespace) -> None:
        if args.database is None and (len(args.queries) != 2 or args.out):
            raise UserError("without --database two image files are compared; name with it the folder to search in")
        if args.top_k < 1:
            raise UserError(f"--top-k {args.top_k}: must be at least 1")
        if args.database is None:
            first, second = map(Path, args.queries)
            compare(first, second, args.model, args.calibration)
        else:
            search(args)

    return run_match


def compare(first: Path, second: Path, path: Path, calibrated_by: Path | None) -> None:
    """Print what the model says of two images."""
    import torch

    from pairvpr_dist import PairVPR
    from pairvpr_dist.data.augmentation import normalise
    from pairvpr_dist.data.decoding import load_square
    from pairvpr_dist.models.pair_scorer import require_pair_classifier
    from pairvpr_dist.retrieval.calibration import percent, probability

    model = PairVPR.from_pretrained(path)
    require_pair_classifier(model, f"--model {path}")
    calibration = _calibration(path, calibrated_by)
    images = torch.stack([load_square(image, model.config.image_size) for image in (first, second)])
    with torch.inference_mode():
        out = model.describe(normalise(images))
        a, b = out.dense[:1], out.dense[1:]
        forward, backward = model.score_pairs(a, b).item(), model.score_pairs(b, a).item()
    print(f"descriptor similarity {out.descriptors[0] @ out.descriptors[1]:.4f}")
    print(f"pair score            {forward + backward:.4f}")
    print(f"  first to second     {forward:.4f}")
    print(f"  second to first     {backward:.4f}")
    if calibration is not None:
        print(f"same place            {percent(probability(forward + backward, calibration))}")


def search(args: argparse.Namespace) -> None:
    """Index the folder, answer each query, print and write the answers."""
    from pairvpr_dist import PairVPR
    from pairvpr_dist.config import load_config
    from pairvpr_dist.files import new_folder
    from pairvpr_dist.models.pair_scorer import require_pair_classifier
    from pairvpr_dist.retrieval.place_index import PlaceIndex

    queries = _files(args.queries)
    _check_name(args.database)
    if args.out and args.out.resolve().is_relative_to(args.database.resolve()):
        raise UserError(f"--out {args.out}: lies among the images to search; name a folder elsewhere")
    budget = [f"eval.feature_budget_gib={args.feature_budget}"] if args.feature_budget else []
    config = load_config("eval", "vitb", ["eval.model=given", "eval.data=given", *budget]).eval
    with new_folder(args.out) if args.out else nullcontext() as folder:
        model = PairVPR.from_pretrained(args.model)
        require_pair_classifier(model, f"--model {args.model}")
        calibration = _calibration(args.model, args.calibration)
        index = PlaceIndex.open(args.database, model, calibration, config)
        print(f"{len(index):,} images of {args.database}")
        answers = []
        for query, matches in _answers(index, queries, args.top_k):
            print(_table(query, matches))
            answers.append(_record(query, matches))
            if folder:
                answers[-1]["picture"] = f"{len(answers):04d}-{one_line(query.stem[:40])}.jpg"
                _draw(query, matches, folder / answers[-1]["picture"])
        if folder:
            _write(folder, args, index, answers)
    if folder:
        print(f"written: {args.out / 'matches.csv'}, matches.json and {len(answers):,} pictures")


def _answers(index: PlaceIndex, queries: dict[Path, bool], top_k: int) -> Iterator[tuple[Path, list[Match]]]:
    """Every query with its matches. What cannot be read is an error if it was named, else left out, and told."""
    for query, named in queries.items():
        try:
            yield query, index.match(query, top_k)
        except UserError as error:
            if named:
                raise
            log.warning("left out: %s", one_line(str(error)))


def _files(queries: list[str]) -> dict[Path, bool]:
    """The images that are meant, each with whether it was named itself."""
    from pairvpr_dist.retrieval.index_update import photographs

    files = {}
    for path in map(Path, queries):
        _check_name(path)
        if not path.exists():
            raise UserError(f"{path}: no such file; name an image or a folder of images")
        files.update({path / name: False for name in photographs(path)} if path.is_dir() else {path: True})
    return files


def _check_name(path: Path) -> None:
    from pairvpr_dist.retrieval.protocols.protocol import is_utf8

    if not is_utf8(str(path)):
        raise UserError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename it")


def _calibration(model: Path, given: Path | None) -> dict[str, float] | None:
    """The calibration that was named, else the model's own; without any, it is said that there is none."""
    from pairvpr_dist.retrieval.calibration import own_calibration, read_calibration
    from pairvpr_dist.retrieval.evaluate import weights_digest

    if given is not None:
        calibration = read_calibration(given, weights_digest(model))
        if calibration is None:
            raise UserError(f"{given}: has no calibration; name an evaluation with right and wrong candidates")
        return calibration
    calibration = own_calibration(model)
    if calibration is None:
        log.warning("not calibrated: no probabilities; name an evaluation of this model with --calibration")
    return calibration


def _table(query: Path, matches: list[Match]) -> str:
    from pairvpr_dist.retrieval.calibration import percent

    lines = [one_line(str(query)), "  rank      same place     score  similarity  image"]
    for m in matches:
        at = m.position
        where = (f"{at.east:.0f} E {at.north:.0f} N {at.zone}  " if at else "") + one_line(m.name)
        lines.append(f"  {m.rank:>4}  {percent(m.probability):>14}  {m.score:>8.3f}  {m.similarity:>10.4f}  {where}")
    return "\n".join(lines)


def _record(query: Path, matches: list[Match]) -> dict[str, Any]:
    return {
        "query": str(query),
        "matches": [
            {
                "rank": m.rank,
                "database": m.name,
                "descriptor_rank": m.descriptor_rank,
                "descriptor_similarity": round(m.similarity, 6),
                "pair_score": round(m.score, 6),
                "probability": None if m.probability is None else round(m.probability, 6),
                "position": m.position
                and {"east": m.position.east, "north": m.position.north, "zone": m.position.zone},
            }
            for m in matches
        ],
    }


def _draw(query: Path, matches: list[Match], file: Path) -> None:
    from pairvpr_dist.retrieval.match_picture import match_picture

    match_picture(query, matches).save(file, quality=90)


def _write(folder: Path, args: argparse.Namespace, index: PlaceIndex, answers: list[dict[str, Any]]) -> None:
    """matches.json, and the same as a table in matches.csv."""
    from pairvpr_dist.files import write_json

    facts = {"format": FORMAT, "model": str(args.model), "database": str(args.database), "images": len(index)}
    facts |= {"left_out": index.left_out, "calibration": index.calibration}
    write_json(folder / "matches.json", {**facts, "queries": answers})
    with (folder / "matches.csv").open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, COLUMNS, restval="", lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        for answer in answers:
            for found in answer["matches"]:
                table.writerow({"query": answer["query"], **found, **(found["position"] or {})})
