"""Images to descriptors and dense features.

Contract: images are resized whole to a square and described in file order, the last partial batch included.
Descriptors are fp32 in memory (a few KiB an image). Dense features (MiB an image) are never all in memory: they lie in
fp16 in a memory-mapped file as far as the budget goes, and are computed again from the image where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pairvpr_dist.data.augmentation import normalise
from pairvpr_dist.data.decoding import load_square
from pairvpr_dist.errors import UserError
from pairvpr_dist.models.pair_vpr import Description, PairVPR
from pairvpr_dist.settings import PATCH, EvalConfig


class Describer:
    """A model made ready for inference: its device, its image size and its precision."""

    def __init__(self, model: PairVPR, config: EvalConfig) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.image_size = config.image_size or model.config.image_size
        self.batch_size = config.batch_size
        self.workers = config.workers
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and self.device.type == "cuda")

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Patches and width of the dense features of one image."""
        return (self.image_size // PATCH) ** 2, self.model.encoder.dim

    def autocast(self) -> torch.autocast:
        """The precision of every forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.inference_mode()
    def describe(self, paths: Sequence[Path], workers: int = 0) -> Iterator[Description]:
        """Describe images batch by batch in their order; `workers` processes decode. `UserError` names a bad image."""
        squares = _Squares(paths, self.image_size)
        pin = self.device.type == "cuda"
        for batch in DataLoader(squares, self.batch_size, num_workers=workers, collate_fn=_collate, pin_memory=pin):
            if isinstance(batch, UserError):
                raise batch
            images = normalise(batch.to(self.device, non_blocking=True))
            with self.autocast():
                description = self.model.describe(images)
            yield description


class DenseFeatures:
    """Dense features of a list of images: the first rows on disk, the others computed again whenever they are read."""

    def __init__(self, describer: Describer, paths: Sequence[Path], stored: np.ndarray) -> None:
        self.describer = describer
        self.paths = paths
        self.stored = stored  # (kept, N, C) fp16, memory-mapped

    def read(self, rows: np.ndarray) -> Tensor:
        """Features (n, N, C) fp32 of the images `rows` (n,), on the model's device."""
        features = torch.empty(len(rows), *self.stored.shape[1:], device=self.describer.device)
        on_disk = rows < len(self.stored)
        if on_disk.any():
            features[torch.from_numpy(on_disk)] = torch.from_numpy(self.stored[rows[on_disk]]).to(features)
        if not on_disk.all():
            again = self.describer.describe([self.paths[row] for row in rows[~on_disk]])
            # Through fp16, so that a score does not depend on where its features come from.
            features[torch.from_numpy(~on_disk)] = torch.cat([out.dense.half().to(features) for out in again])
        return features


def describe_images(
    describer: Describer, paths: Sequence[Path], file: Path, budget: int, title: str
) -> tuple[np.ndarray, DenseFeatures]:
    """Describe `paths`; keep dense features in `file` as far as `budget` bytes go.

    Returns descriptors (M, D) fp32 and the features. Raises `UserError` for an image that cannot be read and for a
    model whose descriptors are not finite.
    """
    stored = _feature_file(file, describer.feature_shape, len(paths), budget)
    descriptors: list[np.ndarray] = []
    row = 0
    with tqdm(total=len(paths), desc=title, unit="image", disable=None) as progress:
        for out in describer.describe(paths, describer.workers):
            descriptors.append(out.descriptors.cpu().numpy())
            require_finite(descriptors[-1], "descriptors")
            count = min(len(out.dense), len(stored) - row)
            if count > 0:
                stored[row : row + count] = out.dense[:count].half().cpu().numpy()
            row += len(out.dense)
            progress.update(len(out.dense))
    return np.concatenate(descriptors), DenseFeatures(describer, paths, stored)


def require_finite(values: np.ndarray, what: str) -> None:
    """Raise `UserError` when a model gave NaN or infinity: every ranking made of them would be nonsense."""
    if not np.isfinite(values).all():
        raise UserError(
            f"eval.model: gives {what} that are not finite; its weights are damaged or its training diverged"
        )


def _feature_file(file: Path, shape: tuple[int, int], images: int, budget: int) -> np.ndarray:
    kept = min(images, budget // (2 * shape[0] * shape[1]))
    if kept == 0:  # a file of no bytes cannot be mapped
        return np.empty((0, *shape), dtype=np.float16)
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(kept, *shape))


class _Squares(Dataset):
    """Images as uint8 squares. A user's mistake is returned, not raised: a worker would wrap it in a traceback."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = paths
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor | UserError:
        try:
            return load_square(self.paths[row], self.size)
        except UserError as error:
            return error


def _collate(items: list[Tensor | UserError]) -> Tensor | UserError:
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else torch.stack(items)  # type: ignore[arg-type]
