"""Jobs of a run that wait for each other. What SLURM does with them is in tests/slurm."""

from __future__ import annotations

from pathlib import Path

from launchers.run_jobs import Submitted
from launchers.submission import dependency_on, told


def test_a_stage_waits_for_the_one_before_it() -> None:
    assert dependency_on(["81234"]) == "afterok:81234"
    assert dependency_on(["7_0", "7_1"]) == "aftercorr:7"


def test_what_was_submitted_is_told_in_a_line_with_how_to_follow() -> None:
    def submitted(stage: str, number: str, run: str = "runs/my run") -> Submitted:
        return Submitted(Path(run), stage, number, None, {"base": "runs/my run"})

    chain = told([[submitted("stage1", "81234")], [submitted("stage2", "81235")], [submitted("eval", "81236")]])
    assert chain.startswith("stage1 81234 -> stage2 81235 -> eval 81236    run folder runs/my run\n")
    assert "slurm.py logs 'runs/my run' -f" in chain
    sweep = told([[submitted("stage1", f"7_{i}", f"runs/s/seed={i}") for i in range(2)]])
    assert sweep.startswith("stage1 7    run folder runs/my run (2 points)\n")
    assert sweep.endswith("status runs/s/seed=0 runs/s/seed=1")
    assert told([]) == "all stages have ended; nothing was submitted"
