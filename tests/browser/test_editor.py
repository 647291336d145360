"""Running graphs in the editor: pictures, previews, cancelling, errors, the queue, and a restarted server."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (tests/browser/README.md)")
expect = sync_api.expect

pytestmark = pytest.mark.slow
each_editor = pytest.mark.parametrize("editor", ["current", "old"], indirect=True)


@each_editor
def test_the_edit_template_runs_and_its_picture_is_shown_in_the_node(editor: Any) -> None:
    editor.open()
    editor.page.get_by_test_id("template-workflow-edit").click()
    editor.wait_for_node("UniWorldSampler")
    editor.make_quick("first/edit")
    assert not editor.shows_colors("SaveImage")
    editor.run()
    [job] = editor.wait_for_jobs(1)
    made = editor.until(lambda: editor.pictures("SaveImage"), "the picture in Save Image")
    assert f"filename={job['preview_output']['filename']}" in made[0]
    assert (editor.host.folder / "output" / "first" / job["preview_output"]["filename"]).is_file()
    editor.until(lambda: editor.shows_colors("SaveImage"), "the picture on the screen")


@each_editor
def test_a_live_preview_is_shown_in_the_sampler(editor: Any) -> None:
    editor.open("edit")
    editor.make_quick("preview", steps=1000)
    editor.run()
    first = editor.until(lambda: editor.pictures("UniWorldSampler"), "a preview")
    assert first[0].startswith("blob:")
    editor.until(lambda: editor.pictures("UniWorldSampler") not in (first, []), "another preview")
    editor.until(lambda: editor.shows_colors("UniWorldSampler"), "the preview on the screen")
    assert editor.jobs()[-1]["status"] == "in_progress"
    editor.host.ask("/api/interrupt", {})
    editor.wait_for_jobs(1, "cancelled")


def test_the_full_warning_of_a_node_stays_after_the_run(editor: Any) -> None:
    editor.open("edit")
    editor.set("UniWorldCondition", prompt="Make it a sunny beach.")
    editor.set("UniWorldSampler", steps=1)
    editor.run()
    editor.wait_for_jobs(1)
    said = editor.page.get_by_text("The model does not know the words 'sunny', 'beach'").first
    expect(said).to_be_visible()
    assert "choose them as the checkpoint." in said.inner_text()


@each_editor
def test_cancel_stops_the_run_and_the_next_one_works(editor: Any) -> None:
    editor.open("edit")
    editor.make_quick("cancel", steps=1000)
    editor.run()
    editor.until(lambda: editor.pictures("UniWorldSampler"), "a preview")
    editor.page.get_by_role("button", name="Cancel current run").click()
    editor.wait_for_jobs(1, "cancelled")
    assert not editor.pictures("SaveImage")
    editor.set("UniWorldSampler", steps=2)
    editor.run()
    editor.wait_for_jobs(2)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("node.disconnectInput(node.inputs.findIndex((one) => one.name == 'vlm'))", "missing a required input: vlm"),
        (
            "void (node.widgets.find((one) => one.name == 'prompt').value = '')",
            "The prompt is empty: write what to paint",
        ),
    ],
    ids=["missing", "empty"],
)
def test_validation_errors_are_shown_on_the_node(editor: Any, spoil: str, sentence: str) -> None:
    editor.open("edit")
    editor.node("UniWorldCondition", spoil)
    assert not editor.framed_in_red("UniWorldCondition")
    editor.run()
    expect(editor.page.get_by_text(sentence)).to_be_visible()
    editor.until(lambda: editor.framed_in_red("UniWorldCondition"), "a red frame around the node")
    assert not editor.framed_in_red("UniWorldLoader")
    assert len(editor.jobs()) == editor.before, "a rejected prompt is not a job"


@each_editor
def test_the_reason_of_a_rejected_value_is_shown_until_it_changes(editor: Any) -> None:
    editor.open("edit")
    editor.set("UniWorldCondition", prompt="")
    editor.page.evaluate("void app.queuePrompt(0)")

    def written() -> bool:
        return "The prompt is empty: write what to paint" in " ".join(editor.written())

    editor.until(written, "the reason on the node")
    assert len(editor.jobs()) == editor.before
    editor.set("UniWorldCondition", prompt="Make the red circle blue.")
    editor.until(lambda: not written(), "the node without the reason")


def test_an_error_of_the_run_is_shown_on_the_node(editor: Any) -> None:
    editor.open("edit")
    editor.make_quick("error")
    # That a connected prompt is empty is found only during the run.
    editor.page.evaluate("""() => {
        const text = LiteGraph.createNode('PrimitiveString')
        text.pos = [-400, 300]
        app.graph.add(text)
        text.connect(0, app.graph._nodes.find((node) => node.type == 'UniWorldCondition'), 'prompt')
    }""")
    editor.run()
    editor.wait_for_jobs(1, "failed")
    editor.until(lambda: editor.framed_in_red("UniWorldCondition"), "a red frame around the node")
    editor.page.get_by_test_id("error-overlay-see-errors").click()
    expect(editor.page.get_by_text("The prompt is empty: write what to paint")).to_be_visible()
    editor.set("PrimitiveString", value="A cat in a hat.")
    editor.run()
    editor.wait_for_jobs(2)
    editor.until(lambda: not editor.framed_in_red("UniWorldCondition"), "the node without its red frame")


def test_several_runs_finish_in_order_and_are_listed(editor: Any) -> None:
    editor.open("edit")
    editor.make_quick("several")
    editor.set("UniWorldSampler", control_after_generate="randomize")  # otherwise the later ones would be cached
    for _ in range(4):
        editor.run()
    jobs = editor.wait_for_jobs(4)
    assert [job["status"] for job in jobs] == ["completed"] * 4
    names = [job["preview_output"]["filename"] for job in jobs]
    assert names == [f"several_0000{number}_.png" for number in (1, 2, 3, 4)]
    ends = [(job["execution_start_time"], job["execution_end_time"]) for job in jobs]
    assert all(before[1] <= after[0] for before, after in pairwise(ends))
    editor.page.get_by_test_id("queue-overlay-toggle").click()
    rows = editor.page.get_by_test_id("job-assets-list")
    for name in names:
        expect(rows.get_by_text(name)).to_be_visible()


def test_the_page_reconnects_to_a_restarted_server(own_host: Any, new_editor: Callable[[Any], Any]) -> None:
    editor = new_editor(own_host)
    editor.open("edit")
    editor.make_quick("before")
    editor.run()
    editor.wait_for_jobs(1)
    own_host.stop()
    expect(editor.page.get_by_text("Reconnecting").first).to_be_visible()
    own_host.start()
    expect(editor.page.get_by_text("Reconnected").first).to_be_visible()
    editor.make_quick("after")
    editor.run()
    _, job = editor.wait_for_jobs(2)
    shown = f"filename={job['preview_output']['filename']}"
    assert shown.startswith("filename=after_")
    editor.until(lambda: any(shown in one for one in editor.pictures("SaveImage")), "the new picture in Save Image")
