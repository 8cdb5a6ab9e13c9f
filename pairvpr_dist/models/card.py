"""The model card of an export: what the file is, from what it was made, and what was measured. Pure text."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from pairvpr_dist.settings import ModelConfig


def model_card(config: ModelConfig, facts: dict[str, Any], parameters: int) -> str:
    """Markdown for `README.md` of an export.

    `facts` may hold stage, data, licence, metrics, commit and more; `config`, the whole configuration, comes last.
    """
    lines = [
        "# Pair-VPR model",
        "",
        f"Encoder {config.encoder}, {config.image_size} px, {parameters / 1e6:,.1f} M numbers.",
    ]
    lines += ["", "| fact | value |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in facts.items() if name != "config"]
    lines += [
        "",
        "```python",
        "from pairvpr_dist import PairVPR",
        'model = PairVPR.from_pretrained("this folder")',
        "```",
        "",
    ]
    if "config" in facts:
        lines += ["Made with:", "", "```yaml", OmegaConf.to_yaml(OmegaConf.create(facts["config"])).rstrip(), "```", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")
