"""What ends a run that has gone wrong, before it burns days or overwrites a good checkpoint.

Contract: a run whose updates are skipped too often in a row, or whose loss is not finite, ends with one line that
names the step and the checkpoint to go on from. The checkpoint of such a step is never written.
"""

from __future__ import annotations

import math
from pathlib import Path

from pairvpr_dist.errors import UserError


class Guard:
    """Watches the updates and losses of one run."""

    def __init__(self, folder: Path, max_skipped_steps: int) -> None:
        self._checkpoints = folder / "checkpoints"
        self._limit = max_skipped_steps
        self._in_a_row = 0

    def check_update(self, step: int, applied: bool) -> None:
        """Count updates that DeepSpeed skipped because a gradient was not finite."""
        self._in_a_row = 0 if applied else self._in_a_row + 1
        if self._in_a_row >= self._limit:
            raise self._end(step, f"{self._in_a_row} updates in a row were skipped for gradients that are not finite")

    def check_loss(self, step: int, loss: float) -> None:
        """End on a loss that is not finite."""
        if not math.isfinite(loss):
            raise self._end(step, f"the loss is {loss}")

    def _end(self, step: int, what: str) -> UserError:
        pointer = self._checkpoints / "latest"
        last = f"the last checkpoint is {pointer.read_text().strip()}" if pointer.exists() else "there is no checkpoint"
        return UserError(f"step {step}: {what}; {last} in {self._checkpoints}; lower optim.lr or set "
                         "optim.clip_grad_norm, and start the same command again")  # fmt: skip
