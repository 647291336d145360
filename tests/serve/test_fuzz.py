"""Every route of the description, asked with nonsense: no 500, no undescribed status, nothing outside the folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = st.sampled_from(
    ["a", "workflows/a.json", "..", "../x", "%2e%2e", "/etc/passwd", "nul", "a\0b", "a\nb", "ü", "x" * 300, "a b", "C:\\x", "tiny",
     "uniworld", "input", "cat.jpg", "docs/UniWorldSampler.md", "edit.json", "SaveImage", "", "\ud800", "%", "a%2Fb", "index"]
) | st.text(max_size=20)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=10) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NODES = st.dictionaries(
    st.sampled_from(["1", "2", "3", "6:2", ""]),
    JSON
    | st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(["Paint", "Show", "Number", "Add", "SaveImage", "LoadImage", "Nothing"])
            | JSON,
            "inputs": st.dictionaries(
                st.sampled_from(["value", "a", "b", "steps", "seed", "image", "images", "filename_prefix"]),
                JSON | st.tuples(st.sampled_from(["1", "2", "3"]), st.integers(-2, 3)).map(list),
            )
            | JSON,
        }
    ),
    max_size=4,
)
GRAPH_ID = NAMES.map(lambda name: {"extra_pnginfo": {"workflow": {"id": name}}})
IDS = st.lists(st.sampled_from(["a", "\ud800", "", "x" * 300]), max_size=3) | JSON
BODIES = {
    "prompt": NODES, "client_id": NAMES | JSON, "prompt_id": NAMES | JSON, "front": JSON, "number": JSON, "extra_data": GRAPH_ID | JSON, "delete": IDS,
    "clear": JSON, "job_ids": IDS, "partial_execution_targets": JSON, "clientId": JSON, "enabled": JSON, "free_memory": JSON,
}  # fmt: skip
SKIPPED = {"/ws", "/api/ws"}  # a socket: fuzzed in test_socket.py


@st.composite
def requests(draw: st.DrawFn, description: dict[str, Any]) -> tuple[str, str, str, bytes | None, dict[str, str]]:
    """A method and a path of the description, the path to ask, and a body with its headers."""
    path = draw(st.sampled_from(sorted(set(description["paths"]) - SKIPPED)))
    method = draw(st.sampled_from(sorted(description["paths"][path])))
    operation = description["paths"][path][method]
    asked, query = path, []
    for one in operation.get("parameters", ()):
        if one["in"] == "path":
            asked = asked.replace("{" + one["name"] + "}", _quoted(draw(NAMES)))
        elif draw(st.booleans()):
            value = draw(
                st.sampled_from(one["schema"]["enum"]) if "enum" in one["schema"] else NAMES | st.integers().map(str)
            )
            query.append(f"{one['name']}={_quoted(value)}")
    body, headers = None, {}
    if "requestBody" in operation:
        raw = st.binary(max_size=40)
        whole = st.fixed_dictionaries({}, optional=BODIES).map(lambda data: json.dumps(data).encode())
        body = draw(raw | whole | JSON.map(lambda data: json.dumps(data).encode()))
        headers["Content-Type"] = draw(
            st.sampled_from(["application/json", "multipart/form-data; boundary=x", "text/plain"])
        )
    return method, path, asked + ("?" + "&".join(query) if query else ""), body, headers


def _quoted(text: str) -> str:
    return quote(text.encode(errors="surrogatepass"), safe="")


@pytest.fixture
def outside(tmp_path: Path):
    """What lies beside the folders that requests may change."""

    def outside() -> list[str]:
        inside = ("input", "output", "temp", "user")
        return sorted(str(path) for path in tmp_path.rglob("*") if path.relative_to(tmp_path).parts[0] not in inside)

    return outside


@pytest.mark.slow
def test_no_request_breaks_the_server(live, outside):
    description, before = live.get("/openapi.json").json, outside()

    @settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(requests(description))
    def ask(request: tuple[str, str, str, bytes | None, dict[str, str]]) -> None:
        method, path, asked, body, headers = request
        reply = live.ask(method.upper(), asked, body=body, headers=headers)
        assert reply.status < 500, reply.body
        # A name with a slash, or none, is another path.
        described = description["paths"][path][method]["responses"]
        assert str(reply.status) in {*described, "303", "404", "405"}, (reply.status, reply.body)
        if reply.status >= 400 and method != "head":
            assert reply.json["error"]["message"]

    ask()
    assert outside() == before
    assert sorted(path.name for path in live.config.user.iterdir()) == ["default", *_database(live.config.user)]


def _database(user: Path) -> list[str]:
    return sorted(path.name for path in user.iterdir() if path.name.startswith("uniworld.sqlite3"))
