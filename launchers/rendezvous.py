"""Where the ranks of a job meet: a key-value store that rank 0 holds, found through a file on the shared disk.

Contract: no port is chosen before it is bound, so jobs that share a machine never collide; the file is named by a start
of a job, so nobody takes one of an earlier start; it is whole or not there, and gone when all have met.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

import torch.distributed as dist

from pairvpr_dist.distributed import NO_TIMEOUT
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json, write_json

log = logging.getLogger(__name__)

POLL = 0.5  # seconds
REMIND = 60.0  # seconds between two lines that say what is waited for
PATIENCE = 3600.0  # seconds; then a process is not coming, and the job is to be run again
CONNECT = 10.0  # seconds until an address that does not answer is given up


def meet(path: Path, rank: int, world_size: int) -> dist.TCPStore:
    """The store of a job's ranks; returns when all have it. `path`: a file of this start alone, on a shared disk."""
    store = _hold(path) if rank == 0 else _find(path)
    store.set(f"met/{rank}", socket.gethostname())
    if rank == 0:
        _wait_for_all(store, "met", world_size)
        path.unlink()
    return store


def leave(store: dist.Store, rank: int, world_size: int) -> None:
    """Every rank calls this last; rank 0, in whose memory the store is, returns last."""
    store.set(f"left/{rank}", socket.gethostname())
    if rank == 0:
        _wait_for_all(store, "left", world_size)


def _hold(path: Path) -> dist.TCPStore:
    """Open the store on a port that the system chooses, and publish it."""
    listening = _listen()
    port = listening.getsockname()[1]
    store = dist.TCPStore(
        "localhost", port, is_master=True, wait_for_workers=False, timeout=NO_TIMEOUT,
        master_listen_fd=listening.detach(),
    )  # fmt: skip
    secret = os.urandom(8).hex()
    store.set("start", secret)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"hosts": _names_of_this_machine(), "port": port, "start": secret})
    return store


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def _names_of_this_machine() -> list[str]:
    """What other machines may know this one by, the likeliest first."""
    return list(dict.fromkeys([socket.gethostname(), socket.getfqdn(), *_address()]))


def _address() -> list[str]:
    """The address of the interface that leads out of this machine, where there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of documentation; nothing is sent
        except OSError:
            return []
        return [probe.getsockname()[0]]


def _find(path: Path) -> dist.TCPStore:
    """Connect to the store of rank 0, once it is published and answers. Raises `RuntimeError` when it does not."""
    started = reminded = time.monotonic()
    while True:
        if (store := _connect(path)) is not None:
            return store
        if time.monotonic() - reminded > REMIND:
            log.info("still waiting for rank 0 and its address in %s", path)
            reminded = time.monotonic()
        if time.monotonic() - started > PATIENCE:
            raise RuntimeError(f"{path}: rank 0 is missing; given up after {PATIENCE:.0f} seconds")
        time.sleep(POLL)


def _connect(path: Path) -> dist.TCPStore | None:
    """The store that `path` tells of; None when it is not there yet, or none of its addresses is right."""
    try:
        # Listing the folder makes NFS ask the server, instead of saying again that there is no such file.
        if path.name not in os.listdir(path.parent):
            return None
        told = read_json(path, "where ranks meet")
    except (OSError, UserError):
        return None
    for host in told["hosts"]:
        if _answers(host, told["port"]):
            store = dist.TCPStore(host, told["port"], is_master=False, wait_for_workers=False, timeout=NO_TIMEOUT)
            if store.get("start").decode() == told["start"]:
                return store
    return None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT).close()
    except OSError:
        return False
    return True


def _wait_for_all(store: dist.Store, what: str, world_size: int) -> None:
    """Raises `RuntimeError` with the missing ranks when they do not come."""
    started = reminded = time.monotonic()
    while not store.check([f"{what}/{rank}" for rank in range(world_size)]):
        now = time.monotonic()
        if now - reminded > REMIND:
            log.info("%s", _missing(store, what, world_size))
            reminded = now
        if now - started > PATIENCE:
            raise RuntimeError(f"{_missing(store, what, world_size)}; given up after {PATIENCE:.0f} seconds")
        time.sleep(POLL / 10)


def _missing(store: dist.Store, what: str, world_size: int) -> str:
    """Which ranks have not met or left, and where they are when that is known."""
    missing = [rank for rank in range(world_size) if not store.check([f"{what}/{rank}"])]
    where = [
        f"{rank} ({store.get(f'met/{rank}').decode()})" if store.check([f"met/{rank}"]) else str(rank)
        for rank in missing
    ]
    come = world_size - len(missing)
    return f"{come} of {world_size} processes have {what}; missing: rank {', '.join(where)}"
