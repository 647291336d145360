"""Settings, saved workflows, and the content of node packs."""

from __future__ import annotations

import json
import math
from urllib.parse import quote

import pytest
from uniworld.nodes.headless.serve.content import Pack, translations
from uniworld.nodes.headless.storage.folders import PACKAGE_ROOT


def save(live, name: str, content: bytes = b"{}", query: str = ""):
    return live.post(f"/userdata/{quote(name, safe='')}{query}", body=content)


def test_settings_are_saved(start):
    live = start()
    assert live.post("/settings", {"a": 1, "b": [2]}).status == 200
    assert live.post("/settings/c.d", True).status == 200
    live.stop()
    again = start()
    settings = again.get("/api/settings").json
    assert {key: settings[key] for key in ("a", "b", "c.d")} == {"a": 1, "b": [2], "c.d": True}
    assert again.get("/settings/c.d").json is True
    assert again.get("/settings/unknown").json is None
    assert again.post("/settings", [1]).status == 400


def test_the_tutorial_setting_is_never_sent(live):
    live.post("/settings/Comfy.TutorialCompleted", True)
    assert "Comfy.TutorialCompleted" not in live.get("/settings").json
    assert live.get("/settings").json["Comfy.Notification.ShowVersionUpdates"] is False


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"a": ' * 100_000], ids=["open", "list", "deep", "deeper"])
def test_a_damaged_settings_file_counts_as_empty(live, text):
    live.server.user.mkdir(parents=True)
    (live.server.user / "comfy.settings.json").write_text(text)
    assert live.get("/settings").status == 200
    assert live.post("/settings/a", 1).status == 200
    assert live.get("/settings/a").json == 1


def test_workflows_are_saved_listed_moved_and_removed(live):
    assert save(live, "workflows/my ünï 100%.json", b'{"a": 1}').json == "workflows/my ünï 100%.json"
    assert live.get("/userdata/" + quote("workflows/my ünï 100%.json", safe="")).json == {"a": 1}
    assert save(live, "workflows/deep/b.json", query="?full_info=true").json["path"] == "workflows/deep/b.json"
    assert save(live, "workflows/deep/b.json", query="?overwrite=false").status == 409
    assert live.get("/userdata?dir=workflows").json == ["my ünï 100%.json"]
    assert live.get("/userdata?dir=workflows&recurse=true&split=true").json[0] == ["deep/b.json", "deep", "b.json"]
    (info, _) = live.get("/api/userdata?dir=workflows%2F&recurse=true&full_info=true").json
    assert info.keys() == {"path", "size", "modified", "created"}
    names = {(entry["path"], entry["type"]) for entry in live.get("/v2/userdata?path=workflows").json}
    assert ("workflows/deep", "directory") in names
    assert ("workflows/deep/b.json", "file") in names
    moved = live.post("/userdata/workflows%2Fdeep%2Fb.json/move/workflows%2Fc.json?overwrite=false")
    assert moved.json == "workflows/c.json"
    save(live, "workflows/d.json")
    assert live.post("/userdata/workflows%2Fc.json/move/workflows%2Fd.json?overwrite=false").status == 409
    assert live.post("/userdata/workflows%2Fc.json/move/workflows%2Fd.json").status == 200
    assert live.ask("DELETE", "/userdata/workflows%2Fd.json").status == 204
    assert live.ask("DELETE", "/userdata/workflows%2Fd.json").status == 404
    assert live.get("/userdata/workflows%2Fc.json").status == 404


def test_lists_of_missing_folders(live):
    assert live.get("/userdata").status == 400
    assert live.get("/userdata?dir=workflows").status == 404
    assert live.get("/v2/userdata").json == []
    assert live.get("/v2/userdata?path=workflows").status == 404


@pytest.mark.parametrize(
    "trick", ["../uniworld.sqlite3", "..%2Funiworld.sqlite3", "%2e%2e/x", "/etc/passwd", "a/../../../x", "link/x", "a\\..\\..\\x",
              "nul", "x:y", "a//b", "."],
)  # fmt: skip
def test_no_name_leaves_the_users_folder(live, tmp_path, trick):
    live.server.user.mkdir(parents=True)
    (live.server.user / "link").symlink_to(tmp_path)
    save(live, "a.json")
    before = sorted(str(path) for path in tmp_path.rglob("*") if "sqlite" not in path.name)
    name = quote(trick, safe="")
    for reply in (
        live.get(f"/userdata/{name}"),
        save(live, trick),
        live.ask("DELETE", f"/userdata/{name}"),
        live.post(f"/userdata/a.json/move/{name}"),
        live.post(f"/userdata/{name}/move/b.json"),
        live.get(f"/userdata?dir={name}"),
        live.get(f"/v2/userdata?path={name}"),
    ):
        assert reply.status in (400, 403, 404), trick
    assert sorted(str(path) for path in tmp_path.rglob("*") if "sqlite" not in path.name) == before


def test_a_saved_page_does_not_run(live):
    save(live, "x.html", b"<script>")
    assert live.get("/userdata/x.html").headers["content-type"] == "application/octet-stream"


def test_a_missing_style_sheet_is_empty(live):
    for path in ("/user.css", "/api/userdata/user.css"):
        reply = live.get(path)
        assert (reply.status, reply.headers["content-type"]) == (200, "text/css; charset=utf-8")


# --- node packs ------------------------------------------------------------------------------------------------------


def test_templates_come_with_titles_descriptions_and_pictures(live):
    (group,) = live.get("/templates/index.json").json
    cards = {card["name"]: card for card in group["templates"]}
    assert list(cards)[:2] == ["edit", "text_to_image"], "in the order in which a person would try them"
    assert cards["edit"]["title"] == "Edit a picture"
    assert all(card["description"] not in ("", card["title"]) for card in cards.values())
    assert "uniworld" not in live.get("/api/workflow_templates").json, "otherwise each would be listed twice"
    for name in cards:
        assert live.get(f"/templates/{name}.json").json["nodes"]
        assert live.get(f"/templates/{name}-1.jpg").headers["content-type"] == "image/jpeg"
    for wrong in ("none.json", "edit-2.jpg", "edit.jpg.json", "..%2FREADME.md", "api%2Fedit.json", "edit"):
        assert live.get(f"/templates/{wrong}").status == 404


def test_a_template_opens_by_its_file_and_by_its_short_name(live):
    for name in ("1%20Edit%20a%20picture", "edit"):
        assert live.get(f"/api/workflow_templates/uniworld/{name}.json").json["nodes"]
        assert live.get(f"/api/workflow_templates/uniworld/{name}.jpg").headers["content-type"] == "image/jpeg"
    for wrong in ("uniworld/none.json", "uniworld/api%2Fedit.json", "uniworld/..%2FREADME.md", "other/edit.json"):
        assert live.get(f"/api/workflow_templates/{wrong}").status == 404


def test_help_pages_of_the_nodes(live):
    reply = live.get("/extensions/uniworld/docs/UniWorldSampler.md")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/markdown; charset=utf-8")
    for wrong in ("docs/None.md", "..%2Fhost.py", "docs/../../host.py", "%2e%2e/host.py", "docs"):
        assert live.get(f"/extensions/uniworld/{wrong}").status == 404
    assert live.get("/extensions").json == [
        "/extensions/uniworld/rejections.js",
        "/extensions/uniworld/warnings.js",
        "/extensions/uniworld/wire_colors.js",
    ]


def test_a_packs_content_is_found(tmp_path, live):
    for name, content in {
        "example_workflows/a.json": {}, "example_workflows/deep/b.json": {}, "subgraphs/Blue.json": {"x": math.nan},
        "locales/en/main.json": {"x": {"a": 1}}, "locales/en/nodeDefs.json": {"N": {"display_name": "n"}},
        "web/x.js": {},
    }.items():  # fmt: skip
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_text(json.dumps(content))
    (tmp_path / "pack" / "locales" / "en" / "settings.json").write_text("{broken")
    (tmp_path / "pack" / "locales" / "en" / "commands.json").write_text("[" * 100_000)
    pack = Pack("pack", tmp_path / "pack", tmp_path / "pack" / "web")
    live.server.packs.append(pack)
    assert live.get("/workflow_templates").json["pack"] == ["a"]
    texts = live.get("/i18n").json["en"]
    assert (texts["x"], texts["nodeDefs"]["N"]) == ({"a": 1}, {"display_name": "n"})
    assert live.get("/extensions").json == [
        "/extensions/uniworld/rejections.js",
        "/extensions/uniworld/warnings.js",
        "/extensions/uniworld/wire_colors.js",
        "/extensions/pack/x.js",
    ]
    assert live.get("/extensions/pack/x.js").headers["content-type"].startswith("text/javascript")
    blueprints = live.get("/api/global_subgraphs").json
    (key,) = (key for key, entry in blueprints.items() if entry["name"] == "Blue")
    assert blueprints[key] == {"source": "custom_node", "name": "Blue", "info": {"node_pack": "custom_nodes.pack"}}
    assert json.loads(live.get(f"/api/global_subgraphs/{key}").json["data"]) == {"x": "NaN"}  # JSON has no NaN
    assert live.get("/api/global_subgraphs/unknown").json is None
    (tmp_path / "pack" / "subgraphs" / "Blue.json").write_text("{broken")
    assert live.get(f"/api/global_subgraphs/{key}").json is None


def test_our_own_translations_are_served(live):
    found = translations([Pack("uniworld", PACKAGE_ROOT)])
    assert live.get("/api/i18n").json == found
    assert "zh" in found


def test_our_blueprint_is_a_graph_of_our_nodes(live):
    found = {entry["name"]: key for key, entry in live.get("/api/global_subgraphs").json.items()}
    graph = json.loads(live.get(f"/api/global_subgraphs/{found['Edit with UniWorld']}").json["data"])
    (subgraph,) = graph["definitions"]["subgraphs"]
    assert [node["type"] for node in graph["nodes"]] == [subgraph["id"]]
    infos = live.get("/object_info").json
    for node in subgraph["nodes"]:
        declared = infos[node["type"]]["input"]
        assert {one["name"] for one in node["inputs"]} <= {*declared["required"], *declared.get("optional", {})}
    assert [one["name"] for one in subgraph["inputs"]][:2] == ["image", "prompt"]


def test_settings_nested_too_deeply_are_rejected(live):
    def nested(depth: int) -> bytes:
        return b"[" * depth + b"]" * depth

    assert live.post("/settings/deep", body=nested(200)).status == 200
    for depth in (201, *range(900, 1000), 5000):  # some can be parsed, but could then not be written or read again
        reply = live.post("/settings/deep", body=nested(depth))
        assert (reply.status, reply.error) == (400, "invalid_json")
    assert live.get("/settings").status == 200


def test_files_that_every_editor_requests_are_empty_instead_of_missing(live):
    assert live.get("/userdata/comfy.templates.json").json == []
    assert live.get("/userdata/workflows%2F.index.json").json == {"favorites": []}
    assert live.post("/userdata/comfy.templates.json", [{"name": "mine"}]).status == 200
    assert live.get("/userdata/comfy.templates.json").json == [{"name": "mine"}]
    assert live.get("/userdata/other.json").status == 404
