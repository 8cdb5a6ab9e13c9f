"""What the check at the start says: `python agreement_program.py REPORT CONFIGURATION...`, as one rank of several.

One check for each configuration, which are folders with a `config.yaml`; writes what each said, nothing for agreement.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pairvpr_dist import distributed
from pairvpr_dist.errors import UserError
from pairvpr_dist.training.agreement import check_agreement
from pairvpr_dist.training.run_folder import read_config


def said(folder: Path) -> str:
    try:
        check_agreement(read_config(folder), folder)
    except UserError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    report, *folders = map(Path, sys.argv[1:])
    distributed.start()
    report.write_text(json.dumps([said(folder) for folder in folders]))
    distributed.stop()
