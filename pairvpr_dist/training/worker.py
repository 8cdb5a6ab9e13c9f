"""One process of a training job: `python -m pairvpr_dist.training.worker FOLDER`, started by a launcher.

Contract: everything it needs is the stage's folder, made by `run_folder.open_folder`, and the launcher's environment. A
mistake of the user goes to the launcher, which tells it once; a process that lost another one says no more than that.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from pairvpr_dist import distributed
from pairvpr_dist.errors import USER_ERROR_STATUS, UserError, refusal
from pairvpr_dist.settings import TrainingConfig

PR_SET_PDEATHSIG = 1  # of Linux's prctl
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


def run(config: TrainingConfig, store: dist.Store | None = None) -> bool:
    """Train one stage as one of its processes; RANK, WORLD_SIZE and LOCAL_RANK are set.

    `store`: where the ranks meet; None: at MASTER_ADDR. True when the stage has ended; False when a signal stopped it,
    all saved: the same call goes on. Raises `UserError` for what the user can mend.
    """
    from pairvpr_dist.training.loop import train  # with DeepSpeed; a process of an evaluation needs none of it
    from pairvpr_dist.training.memory_advice import explain
    from pairvpr_dist.training.run_folder import stage_folder
    from pairvpr_dist.training.signals import StopFlag

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says on every CPU that CUDA is not there
    distributed.start(store)
    flag = StopFlag()  # not before: a process that waits for others in vain is to be ended by a signal
    try:
        ended = train(config, stage_folder(config), flag)
    except OSError as error:
        raise refusal(error) or error from None
    except (RuntimeError, MemoryError) as error:
        raise explain(error, config, distributed.world_size()) or error from None
    distributed.stop()
    return ended


def lost_connection(error: RuntimeError) -> bool:
    """Whether all that is wrong here is that another process is gone."""
    return any(sign in str(error) for sign in LOST)


def main() -> None:
    """The program, under torch's elastic agent."""
    from pairvpr_dist.training.run_folder import read_config

    as_worker(lambda: run(read_config(Path(sys.argv[1]))))


def as_worker(work: Callable[[], object]) -> None:
    """Do the work of a process that torch's elastic agent has started; ends with the launcher."""
    end_with_launcher()
    try:
        work()
    except UserError as error:
        _leave_message(str(error))
        raise SystemExit(USER_ERROR_STATUS) from None
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        print(f"process {os.environ['RANK']}: lost its connection to another process", file=sys.stderr)
        raise SystemExit(1) from None


def end_with_launcher() -> None:
    """Let the kernel kill this process when the launcher dies, whatever kills that: it holds the run folder's lock."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it was too late
        os._exit(1)


def _leave_message(message: str) -> None:
    """Write the file that torch's elastic agent reads when a worker has failed."""
    content = {"message": message, "timestamp": int(time.time())}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
