"""Rank 1 is given a folder that holds no run, so that a mistake is told by one rank alone.

Started by an elastic agent: `python one_sided_program.py FOLDER`.
"""

from __future__ import annotations

import os
import sys

from pairvpr_dist.training import worker

if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        sys.argv[1] += "/absent"
    worker.main()
