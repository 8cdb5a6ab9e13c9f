"""What ends a run that has gone wrong, before it burns days or overwrites a good checkpoint.

Contract: an update whose gradient is not finite is skipped on every rank, so weights stay finite; a loss that is not
finite has such a gradient. A run that skips too often in a row ends with one line that names the step and the
checkpoint to go on from.
"""

from __future__ import annotations

from pathlib import Path

from pairvpr_dist.errors import UserError


class Guard:
    """Watches the updates of one run."""

    def __init__(self, folder: Path, max_skipped_steps: int) -> None:
        self._checkpoints = folder / "checkpoints"
        self._limit = max_skipped_steps
        self._in_a_row = 0

    def check_update(self, step: int, applied: bool) -> None:
        """Count updates that DeepSpeed skipped because a gradient was not finite."""
        self._in_a_row = 0 if applied else self._in_a_row + 1
        if self._in_a_row >= self._limit:
            raise self._end(step)

    def _end(self, step: int) -> UserError:
        pointer = self._checkpoints / "latest"
        last = f"the last checkpoint is {pointer.read_text().strip()}" if pointer.exists() else "there is no checkpoint"
        return UserError(
            f"step {step}: {self._in_a_row} updates in a row were skipped for gradients that are not finite; {last} in "
            f"{self._checkpoints}; start the same command again with a lower optim.lr or with optim.clip_grad_norm"
        )
