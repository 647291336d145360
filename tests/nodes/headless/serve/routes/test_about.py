"""Routes that describe the server: nodes, models, the machine, metrics, OpenAPI."""

from __future__ import annotations

import re

from uniworld.nodes.headless.serve.app import make_app
from uniworld.nodes.headless.serve.metrics import Metrics
from uniworld.nodes.renamed import replacements


def test_the_editor_is_served(live):
    page = live.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    script = live.get("/assets/index-1.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in script.headers["cache-control"]
    assert live.get("/templates/index.json").json == live.get("/templates/index.zh.json").json != []


def test_every_node_is_described(live):
    infos = live.get("/api/object_info").json
    assert infos["UniWorldSampler"]["python_module"] == "custom_nodes.uniworld"
    assert infos["LoadImage"]["input"]["required"]["image"][1] == {"image_upload": True}
    assert live.get("/object_info/Paint").json == {"Paint": infos["Paint"]}
    assert live.get("/object_info/Nothing").json == {}


def test_one_broken_node_does_not_hide_the_others(live, monkeypatch):
    monkeypatch.setitem(live.server.registry.classes, "Broken", type("Broken", (), {"INPUT_TYPES": lambda: 1 / 0}))
    infos = live.get("/object_info").json
    assert "Broken" not in infos
    assert "SaveImage" in infos


def test_the_machine_is_described(live):
    stats = live.get("/system_stats").json
    assert stats["system"].keys() >= {"os", "ram_total", "ram_free", "comfyui_version", "python_version", "argv"}
    assert 0 < stats["system"]["ram_free"] < stats["system"]["ram_total"]
    assert "--disable-api-nodes" in stats["system"]["argv"]  # otherwise the editor contacts other hosts
    assert stats["devices"][0].keys() == {
        "name", "type", "index", "vram_total", "vram_free", "torch_vram_total", "torch_vram_free",
    }  # fmt: skip


def test_models_and_folders(live):
    folder = live.config.models / "uniworld" / "Mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert live.get("/models").json == ["uniworld", "diffusers", "siglip", "unipic", "loras"]
    (live.config.models / "loras" / "mine").mkdir(parents=True)
    (live.config.models / "loras" / "mine" / "one.safetensors").write_bytes(b"")
    assert live.get("/models/loras").json[0] == "mine/one.safetensors"
    assert live.get("/experiment/models").json[-1]["folders"][0] == str(live.config.models / "loras")
    assert live.get("/models/uniworld").json[0] == "Mine"
    assert live.get("/models/checkpoints").status == 404
    assert live.get("/experiment/models").json[0]["name"] == "uniworld"
    assert live.get("/experiment/models/uniworld").json[0] == {"name": "Mine", "pathIndex": 0}
    assert live.get("/internal/folder_paths").json["uniworld"] == [str(live.config.models / "uniworld")]
    assert live.get("/view_metadata/uniworld").status == 404


def test_small_responses_that_the_editor_needs(live):
    for path, answer in {
        "/users": {"storage": "server", "migrated": True}, "/embeddings": [],
        "/extensions": ["/extensions/uniworld/rejections.js", "/extensions/uniworld/warnings.js", "/extensions/uniworld/wire_colors.js"], "/node_replacements": replacements(),
    }.items():  # fmt: skip
        assert live.get(path).json == live.get(f"/api{path}").json == answer
    features = live.get("/features").json
    assert features["supports_preview_metadata"] is True
    assert features["show_signin_button"] is False
    assert features["node_replacements"] is True, "otherwise the editor does not request them"


def test_metrics_count(live, graphs):
    live.run(graphs["sum"])
    live.run(
        {
            "1": {"class_type": "Failing", "inputs": {"value": 1}},
            "2": {"class_type": "Show", "inputs": {"value": ["1", 0]}},
        }
    )
    live.post("/prompt", {"prompt": {}})
    reply = live.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in reply.body.decode().splitlines() if not line.startswith("#"))
    assert values['uniworld_runs_total{status="success"}'] == "1"
    assert values['uniworld_runs_total{status="error"}'] == "1"
    assert values["uniworld_queue_length"] == "0"
    assert values["uniworld_refused_total"] == "1"
    assert values['uniworld_node_runs_total{class="Add"}'] == "1"
    assert float(values['uniworld_node_seconds_total{class="Add"}']) >= 0
    assert float(values["process_resident_memory_bytes"]) > 1e7


def test_names_in_metrics_cannot_break_lines():
    metrics = Metrics()
    metrics.count_run("success", 1.0, [('a"b\\c\nd', 1.0)])
    assert 'class="a\\"b\\\\c\\nd"' in metrics.text(0, 0, 0, 0)


def test_the_description_has_every_route(live):
    description = live.get("/openapi.json").json
    assert description["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, methods in description["paths"].items() for method in methods}
    served = set()
    for route in make_app(live.server).router.routes():
        if route.method not in ("HEAD", "*"):  # "*" answers unknown paths and methods with 404 and 405
            assert route.resource is not None
            served.add((route.method, re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", route.resource.canonical)))
    assert described == served
    for methods in description["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["responses"]


def test_the_server_uses_the_given_memory_budget(start):
    live = start(memory=12345)
    assert live.server.host.memory.budget == 12345
    assert "uniworld_model_bytes 0" in live.get("/metrics").body.decode()
