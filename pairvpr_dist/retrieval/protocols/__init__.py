"""The registry of evaluation protocols: name -> function (data folder, positive distance in metres) -> `Protocol`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pairvpr_dist.errors import UserError, nearest
from pairvpr_dist.retrieval.protocols import msls, nordland, pitts, sfxl, tokyo
from pairvpr_dist.retrieval.protocols.cities import read_cities
from pairvpr_dist.retrieval.protocols.folder import read_folder
from pairvpr_dist.retrieval.protocols.protocol import Protocol

__all__ = ["PROTOCOLS", "Protocol", "load_protocol"]

PROTOCOLS: dict[str, Callable[[Path, float], Protocol]] = {
    "folder": read_folder,
    "cities": read_cities,
    "msls-val": msls.read_val,
    "msls-val-full": msls.read_val_full,
    "msls-challenge": msls.read_challenge,
    "msls-challenge-per-city": msls.read_challenge_per_city,
    **pitts.READERS,
    **tokyo.READERS,
    **nordland.READERS,
    **sfxl.READERS,
}
OWN_DATA = ("folder", "cities")  # protocols over data of one's own: the distance is free
PUBLISHED_DISTANCE = 25.0  # metres, of all others


def load_protocol(name: str, data: str | Path, positive_distance: float) -> Protocol:
    """The protocol `name` over the data set at `data`. `UserError` for an unknown name or data that do not fit it."""
    if name not in PROTOCOLS:
        raise UserError(f"eval.protocol={name}: unknown protocol; {nearest(name, PROTOCOLS)}")
    if name not in OWN_DATA and positive_distance != PUBLISHED_DISTANCE:
        raise UserError(
            f"eval.positive_distance={positive_distance:g}: {name} has {PUBLISHED_DISTANCE:g} m; leave the key out, or "
            "evaluate with eval.protocol=folder"
        )
    root = Path(data)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the data set with eval.data")
    return PROTOCOLS[name](root, positive_distance)
