"""Programs with the names of SLURM's that print what those print; what a real SLURM does is in tests/slurm."""

from __future__ import annotations

from pathlib import Path


class SlurmPrograms:
    """A folder of them for PATH. sbatch numbers jobs from 1; squeue shows those in `queue` as running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "queue").touch()
        (folder / "cancelled").touch()
        self.write("sbatch", "")
        self.write("squeue", f"cat {folder}/queue")
        self.write("scancel", f"echo $@ >> {folder}/cancelled")
        self.write("scontrol", "echo 'ClusterName             = here'")
        self.write("sinfo", "echo 'all*|100|1K|8000000|infinite|gpu:8'")

    def write(self, name: str, script: str) -> None:
        """Let a program do this; sbatch then answers with the next number, in $job."""
        if name == "sbatch":
            count = f"echo >> {self.folder}/submitted; job=$(wc -l < {self.folder}/submitted)"
            script = f"{count}\n{script}\necho Submitted batch job $job"
        (self.folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / name).chmod(0o755)

    def run(self, *jobs: str) -> None:
        """Show these jobs in the queue."""
        (self.folder / "queue").write_text("".join(f"{job}|RUNNING|N/A|None\n" for job in jobs))

    @property
    def submitted(self) -> int:
        """How often sbatch was called."""
        path = self.folder / "submitted"
        return len(path.read_text()) if path.exists() else 0

    @property
    def cancelled(self) -> list[str]:
        """The jobs that scancel was told of."""
        return (self.folder / "cancelled").read_text().split()
