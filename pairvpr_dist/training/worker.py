"""One process of a training job: `python -m pairvpr_dist.training.worker FOLDER`, started by a launcher.

Contract: everything it needs is the stage's folder, made by `run_folder.open_folder`, and the launcher's environment.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

from pairvpr_dist import distributed
from pairvpr_dist.errors import UserError
from pairvpr_dist.training.loop import train
from pairvpr_dist.training.run_folder import read_config


def main() -> None:
    """Train; a `UserError` goes to the launcher, which tells it once, and ends the process with status 2.

    When it comes on one rank only, the others lose their connection to it: they end without a word.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says on every CPU that CUDA is not there
    folder = Path(sys.argv[1])
    distributed.start()
    try:
        train(read_config(folder), folder)
    except UserError as error:
        _leave_message(str(error))
        raise SystemExit(2) from None
    except RuntimeError:
        if _another_has_told():
            raise SystemExit(1) from None
        raise
    distributed.stop()


def _another_has_told() -> bool:
    """Whether another rank of this machine has left a message; elastic gives each rank a folder beside ours."""
    ours = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
    return any(path != ours for path in ours.parent.parent.glob(f"*/{ours.name}"))


def _leave_message(message: str) -> None:
    """Write the file that torch's elastic agent reads when a worker has failed."""
    content = {"message": message, "timestamp": int(time.time())}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
