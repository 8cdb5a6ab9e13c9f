"""Memory of a stage 2 step: what it takes on each of 1, 2 and 3 processes, whole and in chunks.

    python benchmarks/stage2_memory.py

Contract: the same batch of the same small model in every row, fp32 on the CPU; what is printed is the largest resident
memory of a rank during forward and backward, less what it held before, as the kernel counts it. No engine, no
optimizer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

from launchers.processes import set_environment
from pairvpr_dist.errors import exit_on_user_error
from pairvpr_dist.files import read_json, write_json

PLACES, VIEWS = 12, 4


def main() -> None:
    """The program; with --measure, one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="vits", help="default: %(default)s")
    parser.add_argument("--image-size", type=int, default=112, metavar="PIXELS")
    parser.add_argument("--measure", nargs=2, metavar=("CHUNKS", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.size, args.image_size, int(args.measure[0]), Path(args.measure[1]))
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    set_environment(threads=1)
    what = f"{args.size}, 3 decoder blocks, {args.image_size} px, {PLACES} places x {VIEWS} images"
    print(f"{what}: MiB of a step on each process")
    for chunks, processes in product((1, 4), (1, 2, 3)):
        bytes_of_ranks = run(args, processes, chunks)
        print(f"processes {processes}  chunks {chunks}  {max(bytes_of_ranks) / 2**20:8.0f}", flush=True)


def run(args: argparse.Namespace, processes: int, chunks: int) -> list[int]:
    """The bytes of every rank."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "bytes.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__,
            "--size", args.size, "--image-size", str(args.image_size), "--measure", str(chunks), str(found),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return read_json(found, "what the processes measured")


def measure(size: str, image_size: int, chunks: int, found: Path) -> None:
    """One rank's step; rank 0 writes the bytes of all of them."""
    import torch

    from pairvpr_dist import PairVPR, distributed
    from pairvpr_dist.config import load_config
    from pairvpr_dist.data.loader import Batch
    from pairvpr_dist.objectives import build_objective

    distributed.start()
    config = load_config("stage2", size, [
        "data.shards=none", f"model.image_size={image_size}", f"objective.chunks={chunks}", "model.decoder_depth=3",
    ])  # fmt: skip
    torch.manual_seed(0)
    objective = build_objective(config, PairVPR(config.model), ["one"])
    places = PLACES // distributed.world_size()
    images = torch.randint(0, 256, (places, VIEWS, 3, image_size, image_size), dtype=torch.uint8)
    keys = torch.randint(0, 2**62, (places, VIEWS))
    ids = torch.arange(places) + places * distributed.rank()
    # The gradients are there before: they do not depend on the batch.
    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    objective(Batch(images, keys, ids, *[torch.zeros_like(ids)] * 2), step=10**6)[0].backward()
    taken = distributed.gather_objects(resident("VmHWM") - before)
    if distributed.rank() == 0:
        write_json(found, taken)
    distributed.stop()


def resident(key: str) -> int:
    """A number of /proc/self/status, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    exit_on_user_error(main)
