"""The model card of an export: what the file is, from what it was made, and what was measured. Pure text."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from pairvpr_dist.settings import ModelConfig

OWN_SECTION = ("config", "results")  # facts that are no line of the table


def model_card(config: ModelConfig, facts: dict[str, Any], parameters: int, loads: str | None = "this folder") -> str:
    """Markdown for `README.md` of an export.

    `facts` may hold stage, data, licence, metrics, commit and more; `results`, evaluations with the digests of their
    splits, get a table, and `config`, the whole configuration, comes last. `loads`: what the loader takes, if anything.
    """
    kind = "SUP-VPR" if config.city_blocks else "Pair-VPR"
    lines = [
        f"# {facts.get('name', f'{kind} model')}",
        "",
        f"Encoder {config.encoder}, {config.image_size} px, {parameters / 1e6:,.1f} M numbers.",
    ]
    if config.city_blocks:
        lines += ["It recognises the city of an image, then the place in it by descriptor, and has no pair classifier."]
    lines += ["", "| fact | value |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in facts.items() if name not in OWN_SECTION]
    if "results" in facts:
        lines += ["", *results_table(facts["results"])]
    if loads:
        load = f'model = PairVPR.from_pretrained("{loads}")'
        lines += ["", "```python", "from pairvpr_dist import PairVPR", load, "```"]
    lines.append("")
    if "config" in facts:
        lines += ["Made with:", "", "```yaml", OmegaConf.to_yaml(OmegaConf.create(facts["config"])).rstrip(), "```", ""]
    return "\n".join(lines)


def results_table(evaluations: list[dict[str, Any]]) -> list[str]:
    """A line per evaluation and ground truth; recall in per cent, by descriptor and re-ranked (SUP-VPR: city first)."""
    lines = [
        "Figures of different splits must not be compared.",
        "",
        "| protocol | split | ground truth | queries | px | top K | recall at | by descriptor | re-ranked |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for results in evaluations:
        protocol = results["protocol"] + (f" ({results['deviation']})" if results.get("deviation") else "")
        for name, truth in results["ground_truths"].items():
            recalls = [truth["descriptor_recall"], truth["reranked_recall"]]
            cells = [protocol, f"`{results['split'][:12]}`", name, f"{truth['queries_counted']:,}"]
            cells += [results["image_size"], results["top_k"], " / ".join(recalls[0])]
            cells += [" / ".join(f"{share:.1f}" for share in recall.values()) for recall in recalls]
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return str(value).replace("|", "\\|").replace("\n", " ")
