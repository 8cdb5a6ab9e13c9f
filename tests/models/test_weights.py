"""Weights in: what fits is taken bit for bit, what does not is refused by its keys, and nothing is ever run."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.errors import UserError
from pairvpr_dist.models.encoder import Encoder
from pairvpr_dist.models.patches import resize_positions
from pairvpr_dist.models.released import encoder_from_released, from_released, to_released
from pairvpr_dist.models.weights import check_same_architecture, load_encoder, load_pretrained, read_tensors
from pairvpr_dist.settings import ModelConfig

ReleasedState = Callable[[int], dict[str, Tensor]]
SMALL_VITS = ModelConfig(
    encoder="dinov2_vits14_reg", image_size=70, frozen_blocks=0, decoder_dim=48, decoder_depth=1, decoder_heads=3,
    descriptor_dim=32, pair_hidden_dim=16,
)  # fmt: skip


class Program:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def dinov2_names(encoder: Encoder) -> dict[str, Tensor]:
    """The state of `encoder` under the names of DINOv2's releases, the class token's position told apart."""
    state = dict(encoder.vit.state_dict())
    class_position = torch.randn(1, 1, encoder.dim, device=state["cls_token"].device)
    released = {
        "cls_token": state.pop("cls_token") - class_position,
        "register_tokens": state.pop("reg_token"),
        "pos_embed": torch.cat([class_position, state.pop("pos_embed")], dim=1),
        "mask_token": encoder.mask_token.detach() + 1,
    }
    if encoder.dim == 1536:  # SwiGLU
        state = {k.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3."): v for k, v in state.items()}
    return released | state


def edit_export(export: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of an export whose tensors were changed."""
    state = load_file(export / "model.safetensors")
    change(state)
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text((export / "config.json").read_text())
    return folder


def test_an_export_comes_back_bit_for_bit(model: PairVPR, export: Path) -> None:
    again = PairVPR.from_pretrained(str(export))
    assert again.config == model.config
    assert not again.training
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_an_export_says_what_it_is(model: PairVPR, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "out", {"stage": "stage2", "licence of the data": "a | b", "metrics": {"x": 0.5}})
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| stage | stage2 |" in card
    assert r"a \| b" in card
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_an_export_never_writes_over_another(model: PairVPR, export: Path) -> None:
    before = (export / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds something"):
        model.save_pretrained(export)
    assert (export / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("decoder.norm.weight"), "missing: decoder.norm.weight"),
        (lambda s: s.update(surplus=torch.zeros(1)), "unknown: surplus"),
        (lambda s: s.update({"decoder.norm.bias": torch.zeros(7)}), r"decoder.norm.bias \(7,\) instead of \(48,\)"),
        (lambda s: s.pop("pair_head.2.bias"), "missing: pair_head.2.bias"),
    ],
)
def test_an_export_that_does_not_fit_is_refused_with_its_keys(
    export: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        PairVPR.from_pretrained(edit_export(export, tmp_path / "bad", change))


def test_a_model_is_taken_to_another_image_size(model: PairVPR, export: Path) -> None:
    larger = PairVPR(replace(model.config, image_size=98))
    load_pretrained(larger, export)
    for name, tensor in larger.state_dict().items():
        before = model.state_dict()[name]
        assert torch.equal(tensor, resize_positions(before, (7, 7)) if name == "decoder.pos_embed" else before)


def test_another_architecture_is_told_by_what_differs(model: PairVPR, export: Path) -> None:
    config = replace(model.config, decoder_depth=2, encoder="dinov2_vits14_reg", image_size=98)
    with pytest.raises(UserError, match=r"encoder is tiny, here dinov2_vits14_reg; decoder_depth is 1, here 2$"):
        check_same_architecture(config, export)


def test_a_released_stage1_file_with_its_arguments_loads(
    released_state: ReleasedState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "stage1.pth"
    torch.save({"model": released_state(1), "epoch": 3, "args": argparse.Namespace(lr=1e-4, mask=0.9)}, path)
    model = PairVPR.from_pretrained(path)
    assert (model.config.image_size, model.config.encoder) == (70, "dinov2_vits14_reg")
    assert "decoder.class_token" in caplog.text
    assert "from scratch" in caplog.text


def test_a_released_stage2_file_is_complete(
    released_state: ReleasedState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = released_state(2)
    torch.save(state, tmp_path / "stage2.pth")
    model = PairVPR.from_pretrained(tmp_path / "stage2.pth")
    config = model.config
    assert (config.image_size, config.decoder_dim, config.decoder_depth, config.decoder_heads) == (98, 192, 2, 3)
    assert (config.descriptor_dim, config.pair_hidden_dim) == (64, 512)
    assert caplog.text == ""
    ours, theirs = "decoder.blocks.1.cross_attn.k.weight", "dec_blocks.1.cross_attn.projk.weight"
    assert torch.equal(model.get_parameter(ours), state[theirs])


@pytest.mark.parametrize("key", ["dec_blocks.1.mlp.fc1.weight", "encoder.model.norm.bias", "dec_pos_embed"])
def test_a_released_file_with_a_missing_key_is_refused_by_it(
    released_state: ReleasedState, tmp_path: Path, key: str
) -> None:
    state = released_state(2)
    del state[key]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=rf"bad.pth.*missing.*{key.split('.', 2)[-1]}"):
        PairVPR.from_pretrained(tmp_path / "bad.pth")


HEADS = ("decoder_clstoken", "globalizer.0.", "classvprmodule.")


@pytest.mark.parametrize("absent", [HEADS[1:2], HEADS[2:], HEADS[:2], HEADS[1:]])
def test_only_the_heads_that_released_files_lack_may_be_missing(
    released_state: ReleasedState, tmp_path: Path, absent: tuple[str, ...]
) -> None:
    torch.save({k: v for k, v in released_state(2).items() if not k.startswith(absent)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"missing: (decoder.class_token|descriptor_head.weight|pair_head.0.weight)"):
        PairVPR.from_pretrained(tmp_path / "bad.pth")
    torch.save({k: v for k, v in released_state(2).items() if not k.startswith(HEADS)}, tmp_path / "stage1.pth")
    assert PairVPR.from_pretrained(tmp_path / "stage1.pth").config.descriptor_dim == 512


@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        ("dec_pos_embed", lambda t: t[:7], r"dec_pos_embed has the shape \(7, 192\)"),
        ("dec_pos_embed", lambda t: t[:, 1:], r"dec_pos_embed has the shape \(49, 191\)"),
        ("dec_pos_embed", lambda t: t[0], r"dec_pos_embed has the shape \(192,\)"),
        ("dec_pos_embed", lambda t: torch.zeros(1).expand(10**12, 192), "no dense tensor"),
        ("dec_norm.bias", lambda t: t.to_sparse(), "dec_norm.bias is no dense tensor"),
        ("dec_norm.bias", lambda t: t.to(torch.complex64), "dec_norm.bias is no dense tensor"),
        ("encoder.model.cls_token", lambda t: t[0, 0, 0], r"cls_token \(\) and pos_embed"),
        ("encoder.model.pos_embed", lambda t: t[0], r"cls_token \(1, 1, 384\) and pos_embed"),
        ("encoder.model.pos_embed", lambda t: t[..., :1], r"cls_token \(1, 1, 384\) and pos_embed"),
        ("decoder_embed.weight", lambda t: t[:, :64], r"decoder_embed.weight has the shape \(192, 64\)"),
        ("globalizer.0.weight", lambda t: t[0], r"globalizer.0.weight has the shape \(384,\)"),
        ("classvprmodule.0.weight", lambda t: t[:, :5], r"classvprmodule.0.weight has the shape \(512, 5\)"),
        ("dec_blocks.999999999.norm1.weight", lambda t: t, "its 3 decoder.blocks are not numbered 0 to 2"),
        ("encoder.model.blocks.99.norm1.weight", lambda t: t, "its 13 encoder.vit.blocks are not numbered 0 to 12"),
    ],
)
def test_a_misshapen_released_file_is_told_in_one_line(
    released_state: ReleasedState, tmp_path: Path, key: str, change: Callable[[Tensor], Tensor], told: str
) -> None:
    state = released_state(2)
    torch.save({**state, key: change(state.get(key, torch.zeros(1)))}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=rf"bad.pth: .*{told}"):
        PairVPR.from_pretrained(tmp_path / "bad.pth")


def test_a_released_file_with_surplus_and_misshapen_keys_is_refused_by_them(
    released_state: ReleasedState, tmp_path: Path
) -> None:
    state = released_state(2)
    state |= {"surplus.weight": torch.zeros(1), "dec_norm.bias": state["dec_norm.bias"][:-1]}
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"unknown: surplus.weight; of another shape: decoder.norm.bias"):
        PairVPR.from_pretrained(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path: Path, save: Callable[..., object]) -> None:
    save({"model": {"weight": torch.zeros(1)}, "args": Program(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(
        UserError, match=r"bad.pth: not readable as weights: damaged, of another kind, or it"
    ) as refused:
        PairVPR.from_pretrained(tmp_path / "bad.pth")
    assert "weights_only" not in str(refused.value)
    assert str(refused.value).isprintable()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors", "cut.pth", "cut.safetensors", "empty.pth"])
def test_damaged_files_are_told_in_one_line(export: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("cut"):
        state = load_file(export / "model.safetensors")
        save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text("some words" if name.startswith("text") else "")
    with pytest.raises(UserError, match=rf"{name}: not readable as weights") as refused:
        read_tensors(path)
    assert "\n" not in str(refused.value)


def test_files_of_another_kind_are_told_what_they_are(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save(dinov2_names(Encoder("tiny", 0)), tmp_path / "encoder.pth")
    (tmp_path / "folder").mkdir()
    for name, told in {
        "gone.pth": "no such file; name an export folder",
        "list.pth": "holds a list, not a state dict",
        "encoder.pth": "an encoder alone, without decoder and heads; pairvpr import",
        "other.pth": "neither an export folder nor a released Pair-VPR file",
        "folder": "config.json: no such file",
    }.items():
        with pytest.raises(UserError, match=rf"{name}.*{told}"):
            PairVPR.from_pretrained(tmp_path / name)


def test_an_export_of_another_program_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')
    with pytest.raises(UserError, match=r"config.json: no key 'model'"):
        PairVPR.from_pretrained(tmp_path)


def test_dinov2_by_path_gives_what_timm_makes_of_the_same_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = dinov2_names(Encoder("dinov2_vits14_reg", 0))
    torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    model = PairVPR(SMALL_VITS).eval()
    load_encoder(model, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    assert torch.equal(model.encoder.mask_token, state["mask_token"])

    theirs: Any = timm.create_model(
        "vit_small_patch14_reg4_dinov2", pretrained=False, img_size=518, dynamic_img_size=True, num_classes=0
    ).eval()
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))
    images = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        class_token, dense = model.encoder(images)
        features = theirs.forward_features(images)
    assert torch.equal(class_token, features[:, 0])
    assert torch.equal(dense, features[:, 5:])


def test_dinov2_in_timms_safetensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    encoder = Encoder("dinov2_vits14_reg", 0)
    save_file(encoder.vit.state_dict(), tmp_path / "timm.safetensors")
    model = PairVPR(SMALL_VITS)
    load_encoder(model, tmp_path / "timm.safetensors")
    assert all(torch.equal(v, encoder.vit.state_dict()[k]) for k, v in model.encoder.vit.state_dict().items())
    assert "no mask token" in caplog.text


def test_every_name_of_a_released_vitg_is_known() -> None:
    with torch.device("meta"):
        encoder = Encoder("dinov2_vitg14_reg", 0)
    ours = encoder_from_released(dinov2_names(encoder), Path("vitg.pth"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in encoder.state_dict().items()}


@pytest.mark.parametrize("encoder", ["dinov2_vits14_reg", "dinov2_vitg14_reg"])
def test_released_names_lead_back_to_ours(encoder: str) -> None:
    with torch.device("meta"):
        ours = PairVPR(replace(SMALL_VITS, encoder=encoder, decoder_dim=64, decoder_heads=1)).state_dict()
        theirs = to_released(ours)
    assert ("encoder.model.blocks.39.mlp.w12.weight" in theirs) == (encoder == "dinov2_vitg14_reg")
    _, again = from_released(theirs, Path("released.pth"))
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in ours.items()}


def test_an_encoder_that_does_not_fit_is_refused_with_its_keys(tmp_path: Path) -> None:
    tiny = dinov2_names(Encoder("tiny", 0))
    small = dinov2_names(Encoder("dinov2_vits14_reg", 0))
    without_registers = {k: v for k, v in small.items() if k != "register_tokens"}
    cases = {
        "tiny": (tiny, r"vit.cls_token \(1, 1, 96\) instead of \(1, 1, 384\)"),
        "plain": (without_registers, "missing: .*vit.reg_token"),
        "broken": ({k: v for k, v in small.items() if k != "mask_token"}, "lacks mask_token"),
        "flat": (small | {"pos_embed": torch.zeros(384)}, r"pos_embed \(384,\) do not fit"),
        "sparse": (small | {"norm.bias": torch.zeros(384).to_sparse()}, "norm.bias is no dense tensor"),
    }
    model = PairVPR(SMALL_VITS)
    for name, (state, told) in cases.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(UserError, match=told):
            load_encoder(model, tmp_path / f"{name}.pth")


def test_a_tensor_that_comes_under_both_names_is_told(
    released_state: Callable[[int], dict[str, Tensor]], tmp_path: Path
) -> None:
    state = released_state(2)
    state["descriptor_head.bias"] = state["globalizer.0.bias"] + 1
    torch.save(state, tmp_path / "both.pth")
    with pytest.raises(UserError, match=r"holds descriptor_head.bias twice, once as"):
        PairVPR.from_pretrained(tmp_path / "both.pth")
