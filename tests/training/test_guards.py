"""What ends a run that has gone wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairvpr_dist.errors import UserError
from pairvpr_dist.training.guards import Guard


def test_only_skips_in_a_row_end_a_run(tmp_path: Path) -> None:
    guard = Guard(tmp_path, max_skipped_steps=3)
    for step, applied in enumerate([False, False, True, False, False, True]):
        guard.check_update(step, applied)
    guard.check_update(6, False)
    guard.check_update(7, False)
    with pytest.raises(UserError, match=r"step 8: 3 updates in a row were skipped.*there is no checkpoint"):
        guard.check_update(8, False)


def test_the_end_names_the_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-00000020\n")
    with pytest.raises(UserError, match=r"step 25: 1 updates in a row .*; the last checkpoint is step-00000020 in"):
        Guard(tmp_path, max_skipped_steps=1).check_update(25, False)
