"""The report of `uniworld bench` in a browser: it sorts, runs nothing from prompts and replies, and loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.nodes.headless.bench.items import BenchItem
from uniworld.nodes.headless.bench.report.page import page
from uniworld.nodes.headless.bench.score_step import ScoredResult

EVIL = "<script>document.title = 'run'</script><img src=http://127.0.0.1:9/a.png onerror=\"document.title='run'\">"
SCORES = {"a": 10.0, "b": 9.5, "c": None, "d": 0.25}


def results(source: str) -> list[ScoredResult]:
    made = []
    for name, score in SCORES.items():
        item = BenchItem(f"{name}{'0' * 60}", "group", name, EVIL, name, picture=source, samples=2)
        values = None if score is None else {"score": score}
        state: Any = "scored" if values else "unscored"
        made.append(
            ScoredResult(item, 0, state, values, "" if values else EVIL, {"judge": f"{EVIL}\u202egnorw " * 200})
        )
    return made


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Any:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    html = page("A <b>run", "the table", results(str(tmp_path / "a.png")), {(f"a{'0' * 60}", 0): tmp_path / "a.png"})
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    shown = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    shown.asked = []
    shown.on("request", lambda request: shown.asked.append(request.url))
    shown.goto((tmp_path / "report.html").as_uri())
    yield shown
    shown.context.close()


def test_the_report_sorts_and_runs_nothing_of_prompts_and_replies(opened: Any) -> None:
    def order() -> str:
        return "".join(text[0] for text in opened.locator("tbody tr td:nth-child(3)").all_inner_texts())

    score = opened.locator("th", has_text="score")
    score.click()
    assert (order(), score.get_attribute("aria-sort")) == (
        "dbac",
        "ascending",
    )  # as numbers; those without a score last
    score.press("Enter")
    assert (order(), score.get_attribute("aria-sort")) == ("abdc", "descending")
    opened.locator("th", has_text="state").click()
    assert order()[-1] == "c"
    assert opened.title() == "A <b>run"
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    assert opened.evaluate("[...document.images].filter((one) => one.complete && one.naturalWidth === 40).length") == 5
    # Long replies scroll in their cell, and text that changes the direction of others is shown as its code.
    assert opened.evaluate("document.documentElement.scrollWidth") == 1400
    assert opened.locator("tbody tr").first.bounding_box()["height"] < 400
    assert "\\u202egnorw" in opened.locator("tbody tr").first.inner_text()
