"""A model as graphs for other programs: ONNX and torch.export, of the encoder and of the pair head.

    encoder     images (B, 3, S, S), normalised  -> descriptor (B, D), dense (B, N, C)
    pair_head   query, candidate (B, N, C)       -> score (B,), both orders summed

Contract: fp32, any batch, one image size. What was written is read again and run beside PyTorch before the folder gets
its name; a difference above `TOLERANCE` of the largest number is an error, and the one found is in the card.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import new_folder
from pairvpr_dist.interop.sources import Source
from pairvpr_dist.interop.writing import write_card
from pairvpr_dist.models.pair_scorer import require_pair_classifier
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.models.weights import load_model_state
from pairvpr_dist.settings import PATCH, check_image_size

OPSET = 20
TOLERANCE = 1e-4  # of the largest number of an output
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ONE_FILE = 1 << 30  # bytes of weights; above, ONNX keeps them in a file beside (a file cannot exceed 2 GiB)
NAMES = {"encoder": (["images"], ["descriptor", "dense"]), "pair_head": (["query", "candidate"], ["score"])}

Run = Callable[..., list[Tensor]]


class EncoderGraph(nn.Module):
    """Images to descriptor and dense features, the position table resized once and for all."""

    def __init__(self, model: PairVPR) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        vit: Any = self.model.encoder.vit
        vit.set_input_size((model.config.image_size, model.config.image_size))
        vit.dynamic_img_size, vit.patch_embed.flatten = False, True

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, 3, S, S)."""
        out = self.model.describe(images)
        return out.descriptors, out.dense


class PairHeadGraph(nn.Module):
    """Dense features of two images to their score, both orders summed."""

    def __init__(self, model: PairVPR) -> None:
        super().__init__()
        self.model = model

    def forward(self, query: Tensor, candidate: Tensor) -> Tensor:
        """query, candidate: (B, N, C)."""
        return self.model.similarity(query, candidate)


def write_onnx(source: Source, out: Path, image_size: int | None = None) -> list[str]:
    """`encoder.onnx` and `pair_head.onnx`, run by onnxruntime beside PyTorch. Returns what it tells the user."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"--format onnx: {', '.join(absent)} not installed; pip install {' '.join(PACKAGES)}")
    source.facts["ONNX opset"] = OPSET
    return [f"opset {OPSET}", *_write(source, out, image_size, ".onnx", _save_onnx)]


def write_torch_export(source: Source, out: Path, image_size: int | None = None) -> list[str]:
    """`encoder.pt2` and `pair_head.pt2`, for `torch.export.load`. Returns what it tells the user."""
    source.facts["torch"] = torch.__version__
    return _write(source, out, image_size, ".pt2", _save_torch_export)


def _write(
    source: Source, out: Path, image_size: int | None, suffix: str, save: Callable[[str, ExportedProgram, Path], Run]
) -> list[str]:
    require_pair_classifier(source.model, str(source.path))
    if source.stage != "stage2":
        raise UserError(f"{source.path}: of stage '{source.stage}', its descriptor and pair head are untrained; "
                        "name a model of stage 2")  # fmt: skip
    model = _at_size(source, image_size or source.model.config.image_size)
    told = []
    with new_folder(out) as folder, torch.no_grad():
        for name, (module, example) in _modules(model).items():
            program = _exported(module, example)
            path = folder / f"{name}{suffix}"
            difference = _check(path, module, example, save(name, program, path))
            told.append(f"{path.name}: differs from PyTorch by {difference:.1e} of the largest number, at most")
            source.facts[path.name] = f"differs from PyTorch by {difference:.1e} of the largest number"
        write_card(replace(source, model=model), folder, loads=None)
    return told


def _at_size(source: Source, image_size: int) -> PairVPR:
    check_image_size("--image-size", image_size)
    model = PairVPR(replace(source.model.config, image_size=image_size)).eval()
    load_model_state(model, source.model.state_dict(), source.path)
    return model


def _modules(model: PairVPR) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """What is exported, each with an example of its input."""
    size, random = model.config.image_size, torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=random)
    dense = torch.randn(2, 2, (size // PATCH) ** 2, model.encoder.dim, generator=random)
    return {"encoder": (EncoderGraph(model), (images,)), "pair_head": (PairHeadGraph(model), (dense[0], dense[1]))}


def _exported(module: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    batch = Dim("batch", min=1)
    return torch.export.export(module.eval(), example, dynamic_shapes=tuple({0: batch} for _ in example))


def _save_onnx(name: str, program: ExportedProgram, path: Path) -> Run:
    import onnxruntime

    inputs, outputs = NAMES[name]
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    with warnings.catch_warnings(action="ignore"):  # torch's exporter warns of its own ways
        torch.onnx.export(
            program, (), path, input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=True,
            external_data=weights > ONE_FILE, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> list[Tensor]:
        feeds = {key: tensor.numpy() for key, tensor in zip(inputs, tensors, strict=True)}
        return [torch.from_numpy(np.asarray(output)) for output in session.run(outputs, feeds)]

    return run


def _save_torch_export(name: str, program: ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(*tensors: Tensor) -> list[Tensor]:
        outputs = module(*tensors)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


def _check(path: Path, module: nn.Module, example: tuple[Tensor, ...], run: Run) -> float:
    """The largest difference between what was written and PyTorch, over the largest number; also at other batches."""
    largest = 0.0
    for batch in (1, 2):
        inputs = [tensor[:batch] for tensor in example]
        expected = module(*inputs)
        for mine, theirs in zip([expected] if isinstance(expected, Tensor) else expected, run(*inputs), strict=True):
            largest = max(largest, ((mine - theirs).abs().max() / mine.abs().max()).item())
    if not largest <= TOLERANCE:
        raise RuntimeError(f"{path.name} differs from PyTorch by {largest:.1e} of the largest number")
    return largest
