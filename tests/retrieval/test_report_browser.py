"""The report in a real browser: on a phone and a desktop, light and dark, it shows all it holds and asks nobody.

Skips where no Chromium is installed; CI installs one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pairvpr_dist.config import load_config
from pairvpr_dist.retrieval.evaluate import evaluate_model
from pairvpr_dist.retrieval.report import rewrite_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome")

WIDTHS = (360, 1280)  # pixels: a phone, a desktop
# Loads the page in frames of these widths, all of it in view, and writes down what a person would see.
LOOK = """<!doctype html><meta charset="utf-8"><style>iframe {{ height: 30000px; display: block; border: 0 }}</style>
{frames}<pre></pre><script>
addEventListener("load", () => setTimeout(() => {{
  const wide = (root, query) => [...root.querySelectorAll(query)].map(item => item.getBoundingClientRect().width);
  document.querySelector("pre").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, view = frame.contentWindow;
    return {{
      dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
      background: view.getComputedStyle(page.body).backgroundColor,
      overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
      images: page.images.length,
      loaded: [...page.images].filter(image => image.complete && image.naturalWidth > 0).length,
      plots: wide(page, "svg"),
      bars: wide(page, ".bar"),
      fetched: view.performance.getEntriesByType("resource").map(entry => entry.name),
      text: page.body.innerText,
    }};
  }}));
}}, 200));
</script>"""


def look(page: Path, scheme: int) -> list[dict[str, Any]]:
    """What the browser shows of `page` at `WIDTHS`; `scheme` 0 is dark, 1 is light. Fails on a console message."""
    frames = "".join(f'<iframe src="{page.name}" style="width: {width}px"></iframe>' for width in WIDTHS)
    (page.parent / "look.html").write_text(LOOK.format(frames=frames))
    assert CHROMIUM is not None
    ran = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}",
            "--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000",
            f"--blink-settings=preferredColorScheme={scheme}", "--enable-logging=stderr", "--v=0", "--dump-dom",
            (page.parent / "look.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in ran.stderr, ran.stderr
    found = re.search("<pre>(.*?)</pre>", ran.stdout, re.DOTALL)
    assert found, ran.stdout[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.fixture(scope="module")
def report(export: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    given = [f"eval.model={export}", f"eval.data={street}", "eval.workers=0"]
    evaluate_model(load_config("eval", "tiny", given).eval, run / "eval")
    shutil.copytree(run / "eval", run / "eval-untrained")
    (run / "stage1").mkdir()
    (run / "stage1/metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1.5}}\n' for step in range(9)))
    return rewrite_report(run)


@pytest.mark.parametrize("scheme", [0, 1])
def test_page_shows_all_of_it_and_fetches_nothing(report: Path, scheme: int) -> None:
    shown = look(report, scheme)
    results = json.loads((report.parent / "eval/results.json").read_text())
    (figures,) = results["ground_truths"].values()
    for width, view in zip(WIDTHS, shown, strict=True):
        assert view["dark"] == (scheme == 0)
        assert view["fetched"] == []
        assert view["overflow"] == 0
        assert view["images"] == view["loaded"] >= 18
        assert len(view["plots"]) == 4
        assert min(view["plots"]) > 0.8 * min(width, 450)
        assert len(view["bars"]) == 2
        assert min(view["bars"]) > 100
        for words in ("Pair-VPR report: run", "untrained", "within 25 m", "UNREACHABLE", "Stage 1: masked modelling"):
            assert words.lower() in view["text"].lower()
        assert f"{figures['reranked_recall']['1']:.1f} %" in view["text"]
        assert "{" not in view["text"]  # of the template
    dark, light = "rgb(20, 23, 28)", "rgb(251, 251, 250)"
    assert {view["background"] for view in shown} == {(dark, light)[scheme]}


def test_a_page_that_asks_for_something_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<!doctype html><img src="http://example.com/x.png"><div style="width: 500px">wide</div>')
    phone, _ = look(page, 1)
    assert phone["fetched"] == ["http://example.com/x.png"]
    assert phone["loaded"] == 0
    assert phone["overflow"] > 0
    page.write_text("<!doctype html><script>console.error('boo')</script>")
    with pytest.raises(AssertionError, match="boo"):
        look(page, 1)
