"""Training objectives: a loss over a model. `build_objective` is the one that a stage's configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence

from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.objectives.base import Objective
from pairvpr_dist.objectives.masked_modelling import MaskedModelling
from pairvpr_dist.settings import Stage1Config, SupVPRConfig, TrainingConfig


def build_objective(config: TrainingConfig, model: PairVPR, datasets: Sequence[str]) -> Objective:
    """The objective of a stage over `model`; `datasets` names what `Batch.datasets` counts."""
    if isinstance(config, Stage1Config):
        return MaskedModelling(model, config.objective, config.data.augment, datasets)
    if isinstance(config, SupVPRConfig):
        from pairvpr_dist.objectives.city_recognition import CityRecognition

        return CityRecognition(model, config.objective, config.data.augment, datasets)
    from pairvpr_dist.objectives.place_recognition import PlaceRecognition  # with SciPy, which takes a second

    return PlaceRecognition(model, config.objective, config.data.augment, datasets)


def validated_metrics(config: TrainingConfig) -> tuple[str, ...]:
    """What the objective of a stage measures on places that are not trained on, by name."""
    if isinstance(config, Stage1Config):
        return MaskedModelling.validated
    if isinstance(config, SupVPRConfig):
        from pairvpr_dist.objectives.city_recognition import CityRecognition

        return CityRecognition.validated
    from pairvpr_dist.objectives.place_recognition import PlaceRecognition

    return PlaceRecognition.validated
