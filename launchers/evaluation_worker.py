"""One process of an evaluation: `python -m launchers.evaluation_worker CONFIGURATION`, started by `processes.py`.

Contract: the configuration comes as JSON; the results go to `<run>/eval`. A signal ends the process at once: what is
done lies in the work folder, block by block.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch.distributed as dist

from pairvpr_dist import distributed
from pairvpr_dist.config import config_from_dict
from pairvpr_dist.errors import refusal
from pairvpr_dist.settings import EvalRunConfig


def evaluate_shared(config: EvalRunConfig, store: dist.Store | None = None) -> None:
    """Evaluate as one of the processes; RANK, WORLD_SIZE and LOCAL_RANK are set. `UserError` for the user's mistakes.

    `store`: where the ranks meet; None: at MASTER_ADDR.
    """
    from pairvpr_dist.retrieval.evaluate import evaluate_model

    distributed.start_on_host(store)
    try:
        evaluate_model(config.eval, Path(config.run) / config.stage)
    except OSError as error:
        raise refusal(error) or error from None
    distributed.stop()


def main() -> None:
    """The program, under torch's elastic agent."""
    from pairvpr_dist.training.worker import as_worker

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    as_worker(lambda: evaluate_shared(config_from_dict(EvalRunConfig, json.loads(sys.argv[1]), "the command line")))


if __name__ == "__main__":
    main()
