"""Images a second of shard building on one core, against the bare decoding of the same bytes, for three forms.

Contract: what is measured is the builder itself, `python shards/build.py folder ... --workers 1`, in this process. The
rounds take turns with bare decoding, so that a busy machine slows both; medians are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import simplejpeg
from forms import FORMS, Form, write_form
from tqdm import tqdm

from pairvpr_dist.errors import UserError, exit_on_user_error
from shards.build import main as build
from shards.images import ImageOptions, StoredImage, cut_columns, store
from shards.part import index_tar
from shards.records import file_record
from shards.tar import SampleWriter, image_fields

PHOTOGRAPHS = Form("800 x 600", ((800, 600),), 4, None)
EXAMPLES = """examples:
  python benchmarks/build.py
  python benchmarks/build.py --quick
  python benchmarks/build.py --panoramas 40 --places 600 --rounds 15"""


class Steps:
    """What a build does with the images of a form, step by step."""

    def __init__(self, form: Form, tree: Path, shards: Path, scratch: Path) -> None:
        self.form, self.shards, self.scratch = form, shards, scratch
        self.paths = sorted(path for path in tree.rglob("*") if path.is_file())
        self.contents = [path.read_bytes() for path in self.paths]
        self.stored = [store(lambda: content, form.is_panoramic, ImageOptions()) for content in self.contents]  # noqa: B023

    def read(self) -> None:
        """Read the files, out of page cache."""
        for path in self.paths:
            path.read_bytes()

    def decode(self) -> None:
        """Bare decoding, nothing else."""
        for content in self.contents:
            simplejpeg.decode_jpeg(content)

    def check(self) -> None:
        """All that happens to a photograph: header and stream are looked at."""
        for content in self.contents:
            store(lambda: content, False, ImageOptions())  # noqa: B023

    def cut(self) -> None:
        """Cut panoramas into columns."""
        for content in self.contents if self.form.is_panoramic else ():
            cut_columns(content)

    def tar(self) -> None:
        """Write the tar."""
        with (self.scratch / "bare.tar").open("wb") as stream, SampleWriter(stream) as tar:
            for number, stored in enumerate(self.stored):
                assert isinstance(stored, StoredImage)  # the images are ours
                fields = image_fields(0, len(stored.files), stored.panorama)
                tar.write(str(number), b"{}", dict(zip(fields, stored.files, strict=True)))

    def index(self) -> None:
        """Read the tar back for the index."""
        for path in self.shards.glob("*.tar"):
            index_tar(path)

    def digest(self) -> None:
        """The tar's sha256."""
        for path in self.shards.glob("*.tar"):
            file_record(path)

    def build(self) -> None:
        """The builder."""
        out = self.scratch / "set"
        source = ["folder", "--source", str(self.paths[0].parents[1]), "--group", "folder", "--dataset", "benchmark"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            build([*source, "--out", str(out), "--workers", "1"])
        shutil.rmtree(out)


def main() -> None:
    """The program."""
    args = _parse()
    with tempfile.TemporaryDirectory() as folder:
        for form in tqdm((*FORMS[:2], PHOTOGRAPHS), "forms", unit="form"):
            below = Path(folder, form.name)
            shards = write_form(form, args.panoramas if form.is_panoramic else args.places, below, args.renderers)
            tqdm.write(report(Steps(form, below / "tree", shards, below), args.rounds))


def report(steps: Steps, rounds: int) -> str:
    """The table of one form."""
    parts: dict[str, Callable[[], None]] = {
        "build": steps.build, "bare decode": steps.decode, "read": steps.read, "check": steps.check,
        "cut": steps.cut, "tar": steps.tar, "index": steps.index, "digest": steps.digest,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in tqdm(range(rounds), steps.form.name, leave=False):
        for name, part in parts.items():
            started = time.perf_counter()
            part()
            seconds[name].append((time.perf_counter() - started) / len(steps.paths))
    ms = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    share = statistics.median(d / b for d, b in zip(seconds["bare decode"], seconds["build"], strict=True))
    shown = {name: value for name, value in ms.items() if name not in ("build", "bare decode")}
    shown["rest"] = ms["build"] - sum(shown.values())
    size = sum(map(len, steps.contents)) / len(steps.contents)
    return "\n".join(
        [
            f"\n{steps.form.name}: {len(steps.paths)} images, {size / 1000:,.0f} kB each",
            f"  build        {1000 / ms['build']:8,.0f} images/s a core  {ms['build']:7.2f} ms",
            f"  bare decode  {1000 / ms['bare decode']:8,.0f} images/s a core  {ms['bare decode']:7.2f} ms",
            f"  building runs at {share:.0%} of bare decoding",
            "  ms of an image: " + "  ".join(f"{name} {value:.2f}" for name, value in shown.items()),
        ]
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/build.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few images and one round: whether it runs")
    parser.add_argument("--places", type=int, default=150, metavar="N", help="of photographs, 4 each (default 150)")
    parser.add_argument("--panoramas", type=int, default=6, metavar="N", help="places of panoramas, 5 each (default 6)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each (default 3)")
    parser.add_argument("--renderers", type=int, default=2, metavar="N", help="processes that render (default 2)")
    args = parser.parse_args()
    if args.quick:
        args.places, args.panoramas, args.rounds = 2, 1, 1
    for name in ("places", "panoramas", "rounds", "renderers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    return args


if __name__ == "__main__":
    exit_on_user_error(main)
