"""A real SLURM of two nodes on this machine, for tests: its daemons, and what tests do to its jobs.

Everything lies in one folder, munge's socket too, and all ports are free ones: several such clusters may run at once.
No accounting, as on many small clusters.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATIENCE = 180.0  # seconds, for what takes one on a quiet machine

# `low` is preempted by `high` after GraceTime; a node that is silent for SlurmdTimeout is down.
CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
KillWait=10
SlurmdTimeout=20
UnkillableStepTimeout=300
NodeName={nodes[0]} NodeHostname={host} Port={ports[1]} CPUs=2 RealMemory={memory} State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} Port={ports[2]} CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class SlurmCluster:
    """Two nodes that run; commands find them through SLURM_CONF in `environment`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = tempfile.mkdtemp(prefix="slurm-")  # short: names of sockets below it must be
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "TMPDIR": self.scratch}

    def start(self) -> None:
        (self.folder / "state").mkdir(parents=True)
        (self.folder / "slurm.conf").write_text(
            CONF.format(
                host=socket.gethostname().partition(".")[0], folder=self.folder, ports=free_ports(3), nodes=NODES,
                memory=psutil.virtual_memory().total >> 20,
            )
        )  # fmt: skip
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        self.folder.chmod(0o755)  # munge trusts no folder that others may write to
        names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{name}" for option, name in names.items()]
        self.run("munged", "--force", *options)
        self.run("slurmctld")
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.run("sinfo", "-h", "-t", "idle", "-p", "low", "-o", "%D").strip() == "2", "idle nodes")

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        self.run("scancel", "--state=PENDING", "--user=root")
        self.run("scancel", "--signal=KILL", "--user=root")
        self.run("scancel", "--user=root")
        wait_for(lambda: not self.run("squeue", "-h").strip(), "jobs to end")
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munge"):
            process = self.daemon(name)
            process.terminate()
            process.wait(PATIENCE)
        shutil.rmtree(self.scratch)

    def run(self, *command: str) -> str:
        """What a command prints; raises with its errors where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def daemon(self, name: str) -> psutil.Process:
        return psutil.Process(int((self.folder / f"{name}.pid").read_text()))

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill -9 a node's daemon and all that it has started."""
        self.daemon(f"slurmd-{node}").kill()
        for process in self.processes("slurmstepd", {"SLURMD_NODENAME": node}):
            kill_tree(process)

    def kill_rank(self, job_id: str, rank: int) -> None:
        """Kill -9 one task of a job."""
        facts = {"SLURM_JOB_ID": job_id, "SLURM_PROCID": str(rank), "SUBMITIT_EXECUTOR": "slurm"}
        (step,) = self.processes("slurmstepd", facts)
        for task in step.children():
            task.kill()

    def processes(self, name: str, facts: dict[str, str]) -> list[psutil.Process]:
        """Processes whose children have `facts` in their environment; of this cluster, others may run here."""
        facts = facts | {"SLURM_CONF": self.environment["SLURM_CONF"]}
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.NoSuchProcess):
                if process.info["name"].startswith(name):
                    found += [process for child in process.children() if facts.items() <= child.environ().items()]
        return found

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says; empty for a job that SLURM has forgotten."""
        done = subprocess.run(
            ["scontrol", "-o", "show", "job", job_id], env=self.environment, capture_output=True, text=True, check=False
        )
        return dict(re.findall(r"(\w+)=(\S*)", done.stdout))

    def state(self, job_id: str) -> str:
        return self.job(job_id).get("JobState", "")

    def hasten(self, job_id: str) -> None:
        """Let a requeued job start now instead of in two minutes; in the same second its nodes would refuse it."""
        wait_for(lambda: self.state(job_id) in ("PENDING", "RUNNING"), f"job {job_id} in the queue")
        if self.state(job_id) == "PENDING":
            self.run("scontrol", "update", f"jobid={job_id}", "starttime=now+2")

    def wait_for_state(self, job_id: str, *states: str) -> None:
        wait_for(lambda: self.state(job_id) in states, f"job {job_id} to be {states}")


def wait_for(reached: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}"
        time.sleep(0.1)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(number)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def kill_tree(process: psutil.Process) -> None:
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, PATIENCE)


@contextmanager
def running_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """A cluster inside the block; skips the test where there can be none."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent or os.geteuid() != 0:
        pytest.skip(
            f"a real SLURM needs {', '.join(absent)} (Debian: slurm-wlm)" if absent else "a real SLURM needs root"
        )
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
