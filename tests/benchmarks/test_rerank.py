"""The benchmark of re-ranking runs, and both of its ways compute the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "rerank.py"


def test_a_small_run(tmp_path: Path) -> None:
    options = ["--size", "tiny", "--pairs", "8", "--top-k", "8", "20", "--rounds", "1", "--folder", tmp_path]
    done = subprocess.run([sys.executable, PROGRAM, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "K = 8\n" in done.stdout
    assert "K = 20 (extrapolated from 8 pairs)" in done.stdout
    assert len(re.findall(r"ratio \d+\.\d\d", done.stdout)) == 2
    for difference in re.findall(r"largest difference of a score (\S+),", done.stdout):
        assert float(difference) < 1e-2  # ours reads features in fp16
    assert not list(tmp_path.iterdir())
