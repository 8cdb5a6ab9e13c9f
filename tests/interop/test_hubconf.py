"""`torch.hub.load` of this clone, in a process that knows nothing else of it, gives the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from pairvpr_dist import PairVPR

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import torch
clone, weights, images, out = sys.argv[1:]
model = torch.hub.load(clone, "pairvpr", source="local", path=weights)
with torch.inference_mode():
    torch.save(model.describe(torch.load(images)).descriptors, out)
"""


def test_a_local_clone_gives_the_model(model: PairVPR, export: Path, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    arguments = [str(ROOT), str(export), str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    # Outside the clone, so that the package comes from where the hub looks.
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, check=True)
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model.describe(images).descriptors)
