"""All ranks run the same thing: code, versions, configuration, shards and run folder, looked at before the first step.

Contract: every rank calls; when one differs from most, every rank raises the same `UserError`, which names rank,
machine, what differs and both values. What a rank cannot read is told in the same way, so that no rank waits for it.
"""

from __future__ import annotations

import hashlib
import platform
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pairvpr_dist
from pairvpr_dist.config import to_dict
from pairvpr_dist.distributed import gather_objects
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.run_folder import data_content, flatten

PACKAGES = ("torch", "deepspeed", "timm", "numpy")  # what computes
DIGEST = 12  # characters that are shown
SHOWN = 3  # differences that an error names
ABSENT = "absent"


class Account(NamedTuple):
    """What a rank runs: values by what they are, and a mistake that kept it from looking."""

    host: str
    values: dict[str, str]
    mistake: str | None


def check_agreement(config: TrainingConfig, folder: Path) -> None:
    """Collective. Raises `UserError` on every rank when one runs something else than most."""
    accounts = gather_objects(own_account(config, folder))
    if fault := find_fault(accounts):
        raise UserError(fault)


def own_account(config: TrainingConfig, folder: Path) -> Account:
    """What this rank runs."""
    values = {"config.yaml of the run": "there" if (folder / "config.yaml").exists() else ABSENT}
    mistake = None
    try:
        for key, digests in data_content(config).items():
            values |= {f"content of data.{key}[{i}]": digest[:DIGEST] for i, digest in enumerate(digests)}
    except UserError as error:
        mistake = str(error)
    values |= {f"configuration {key}": str(value) for key, value in flatten(to_dict(config)).items()}
    values |= {f"version of {name}": version(name) for name in PACKAGES}
    values |= {"version of python": platform.python_version()}
    values |= code_digests(Path(pairvpr_dist.__file__).parent)
    return Account(socket.gethostname(), values, mistake)


def code_digests(package: Path) -> dict[str, str]:
    """Digest of every source file below a package's folder."""
    return {
        f"code {path.relative_to(package)}": hashlib.sha256(path.read_bytes()).hexdigest()[:DIGEST]
        for path in sorted(package.rglob("*.py"))
    }


def find_fault(accounts: Sequence[Account]) -> str | None:
    """One line about the first rank that cannot look or differs from most, if there is one. Pure.

    Where as many say one thing as another, rank 0 is right.
    """
    for rank, account in enumerate(accounts):
        if account.mistake:
            return f"rank {rank} on {account.host}: {account.mistake}"
    names = list(dict.fromkeys(name for account in accounts for name in account.values))
    usual = {name: Counter(a.values.get(name, ABSENT) for a in accounts).most_common(1)[0][0] for name in names}
    for rank, account in enumerate(accounts):
        if differing := _differing(account.values, usual):
            shown = "; ".join(differing[:SHOWN])
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            return (
                f"rank {rank} on {account.host} does not run what most ranks run: {shown}{more}; "
                "give all machines the same code, environment and files"
            )
    return None


def _differing(values: Mapping[str, str], usual: Mapping[str, str]) -> list[str]:
    said = {name: values.get(name, ABSENT) for name in usual}
    return [f"{name} is {said[name]}, of most {usual[name]}" for name in usual if said[name] != usual[name]]
