"""Routes of the queue and the history: queue, list, remove and interrupt prompts."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import uuid

import orjson
from aiohttp import web

from ...check.validate import Validation, validate_prompt
from ...workflow.renaming import rename_in_prompt
from ..http.responses import RequestError, error_response, json_response, query_int, read_ids, read_object
from ..http.route import BOOLEAN, INTEGER, OBJECT, STRING, STRINGS, HTTPRoute, properties
from ..queue.store import SUCCESS
from ..server import Server, server_of

# Credentials for other services that editors send with a prompt. They are never stored.
_SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")
_MAX_ID = 128
_MAX_NODE_ID = 256  # characters; every message of a run repeats the ids


async def post_prompt(request: web.Request) -> web.Response:
    server = server_of(request)
    body = await read_object(request, server.config.limits.json_bytes)
    if "prompt" not in body:
        server.metrics.count_rejected()
        return error_response(400, "no_prompt", "No prompt provided", node_errors={}, details="No prompt provided")
    prompt, limits = rename_in_prompt(body["prompt"], server.registry), server.config.limits
    number, prompt_id, targets, extra = _number(body), _prompt_id(body), _targets(body), _extra(body)
    if isinstance(prompt, dict) and len(prompt) > limits.nodes:
        message = f"The workflow has {len(prompt)} nodes; the limit is {limits.nodes}."
        raise RequestError(413, "graph_too_large", message)
    if isinstance(prompt, dict) and any(len(node) > _MAX_NODE_ID for node in prompt):
        raise RequestError(400, "invalid_node_id", f"Node ids must have at most {_MAX_NODE_ID} characters.")
    if server.store.waiting >= limits.waiting:
        raise RequestError(429, "queue_full", f"The queue is full ({limits.waiting} prompts). Try again later.")
    checked: Validation = await asyncio.to_thread(validate_prompt, prompt, server.registry, targets)
    if checked.error is not None:
        server.metrics.count_rejected()
        return json_response({"error": checked.error, "node_errors": checked.node_errors}, 400)
    server.worker.remember(prompt_id, checked)
    given = server.store.put(prompt_id, prompt, extra, checked.outputs, number=number, front=bool(body.get("front")))
    if given is None:
        raise RequestError(400, "prompt_id_taken", f"A prompt with the id {prompt_id!r} already exists.")
    server.worker.send_status()
    server.worker.wake()
    return json_response({"prompt_id": prompt_id, "number": given, "node_errors": checked.node_errors})


def _number(body: dict[str, object]) -> float | None:
    if "number" not in body or body["number"] is None:
        return None
    number = body["number"]
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not -1e15 < number < 1e15:
        raise RequestError(400, "invalid_number", '"number" must be a number. The lowest runs first.')
    return float(number)


def _prompt_id(body: dict[str, object]) -> str:
    wanted = body.get("prompt_id")
    if wanted is None:
        return str(uuid.uuid4())
    if not isinstance(wanted, str) or not 0 < len(wanted) <= _MAX_ID or not wanted.isprintable() or "/" in wanted:
        raise RequestError(
            400, "invalid_prompt_id", f'"prompt_id" must be a string of up to {_MAX_ID} printable characters.'
        )
    return wanted


def _targets(body: dict[str, object]) -> list[str] | None:
    targets = body.get("partial_execution_targets")
    if targets is None:
        return None
    if not isinstance(targets, list) or not all(isinstance(one, str) for one in targets):
        raise RequestError(400, "invalid_targets", '"partial_execution_targets" must be a list of node ids.')
    return targets


def _extra(body: dict[str, object]) -> dict[str, object]:
    extra = body.get("extra_data") or {}
    if not isinstance(extra, dict):
        raise RequestError(400, "invalid_extra_data", '"extra_data" must be an object.')
    extra = {key: value for key, value in extra.items() if key not in _SECRETS}
    inner = extra.pop("client_id", None)  # removed even if the outer one is null, so that it is checked below
    client = inner if body.get("client_id") is None else body["client_id"]
    if client is not None:
        if not isinstance(client, str) or len(client) > _MAX_ID:
            raise RequestError(400, "invalid_client_id", f'"client_id" must be a string of up to {_MAX_ID} characters.')
        extra["client_id"] = client
    extra["create_time"] = int(time.time() * 1000)
    return extra


async def get_prompt(request: web.Request) -> web.Response:
    return json_response({"exec_info": {"queue_remaining": server_of(request).store.remaining}})


# --- queue and history -----------------------------------------------------------------------------------------------


# Stored JSON is sent as it is, without parsing: a history contains megabytes of graphs.


def _item(row: sqlite3.Row) -> list[object]:
    """Return a prompt as ComfyUI's list of number, id, graph, extra data and output nodes."""
    number = row["number"]
    kept = [orjson.Fragment(row[key]) for key in ("prompt", "extra", "outputs_to_run")]
    return [int(number) if number == int(number) else number, row["id"], *kept]


async def get_queue(request: web.Request) -> web.Response:
    running, pending = (list(map(_item, rows)) for rows in server_of(request).store.active())
    return _json({"queue_running": running, "queue_pending": pending})


def _json(data: object) -> web.Response:
    """Return a response with a space after each colon, as ComfyUI sends it. orjson writes one only when it indents."""
    body = orjson.dumps(data, option=orjson.OPT_INDENT_2)
    return web.Response(body=body, content_type="application/json", charset="utf-8")


async def post_queue(request: web.Request) -> web.Response:
    server = server_of(request)
    body = await read_object(request, server.config.limits.json_bytes)
    ids = read_ids(body.get("delete") or [], server.config.limits.ids)
    if body.get("clear"):
        server.store.delete_waiting()
    server.store.delete_waiting(ids)
    server.worker.send_status()
    return web.Response()


def _history(rows: list[sqlite3.Row]) -> web.Response:
    return _json({row["id"]: _history_entry(row) for row in rows})


def _history_entry(row: sqlite3.Row) -> dict[str, object]:
    done, messages = row["state"] == SUCCESS, orjson.Fragment(row["messages"])
    status = {"status_str": "success" if done else "error", "completed": done, "messages": messages}
    return {"prompt": _item(row), "outputs": orjson.Fragment(row["ui"]), "status": status, "meta": _meta(row)}


def _meta(row: sqlite3.Row) -> orjson.Fragment:
    nodes = json.loads(row["ui"])
    about = {n: {"node_id": n, "display_node": n, "parent_node": None, "real_node_id": n} for n in nodes}
    return orjson.Fragment(json.dumps(about))  # not orjson, which rejects unpaired surrogates in ids


async def get_history(request: web.Request) -> web.Response:
    store = server_of(request).store
    max_items, offset = query_int(request, "max_items"), query_int(request, "offset", -1)
    assert offset is not None
    limit = None if max_items is None else max(max_items, 0)
    return await asyncio.to_thread(lambda: _history(store.done(limit, offset)))


async def get_history_of(request: web.Request) -> web.Response:
    row = server_of(request).store.row(request.match_info["prompt_id"])
    rows = [row] if row is not None and row["done_order"] is not None else []
    return _history(rows)


async def post_history(request: web.Request) -> web.Response:
    server = server_of(request)
    body = await read_object(request, server.config.limits.json_bytes)
    ids = read_ids(body.get("delete") or [], server.config.limits.ids)
    if body.get("clear"):
        server.store.delete_history()
    server.store.delete_history(ids)
    return web.Response()


# --- stopping --------------------------------------------------------------------------------------------------------


async def post_interrupt(request: web.Request) -> web.Response:
    server = server_of(request)
    body = await _object_or_nothing(request, server)
    prompt_id = body.get("prompt_id")
    if prompt_id is not None and not isinstance(prompt_id, str):
        raise RequestError(400, "invalid_prompt_id", '"prompt_id" must be a string.')
    server.worker.interrupt(prompt_id or None)
    return web.Response()


async def post_free(request: web.Request) -> web.Response:
    server = server_of(request)
    body = await _object_or_nothing(request, server)
    # Cached results hold references to the models, so both are released together.
    if body.get("unload_models") or body.get("free_memory"):
        server.worker.free()
    return web.Response()


async def _object_or_nothing(request: web.Request, server: Server) -> dict[str, object]:
    return await read_object(request, server.config.limits.json_bytes) if request.body_exists else {}


_PROMPT = {
    **properties(
        prompt=OBJECT, client_id=STRING, prompt_id=STRING, extra_data=OBJECT, front=BOOLEAN,
        number={"type": "number"}, partial_execution_targets=STRINGS,
    ),
    "required": ["prompt"],
}  # fmt: skip
_REJECTED = {400: "The errors of each node.", 413: "Too large.", 429: "The queue is full."}
_REMOVAL = properties(clear=BOOLEAN, delete=STRINGS)
_CHANGED = {200: "Done.", 400: "Invalid body.", 413: "Too large."}
_PAGE = {200: "By prompt id.", 400: "Invalid query."}

ROUTES = [
    HTTPRoute("POST", "/prompt", post_prompt, "Queue a prompt.", body=_PROMPT, statuses={200: "Queued.", **_REJECTED}),
    HTTPRoute("GET", "/prompt", get_prompt, "Number of waiting and running prompts."),
    HTTPRoute("GET", "/queue", get_queue, "Running and waiting prompts."),
    HTTPRoute("POST", "/queue", post_queue, "Remove prompts from the queue.", body=_REMOVAL, statuses=_CHANGED),
    HTTPRoute("GET", "/history", get_history, "Finished prompts, oldest first.", {"max_items": INTEGER, "offset": INTEGER},
          statuses=_PAGE),
    HTTPRoute("GET", "/history/{prompt_id}", get_history_of, "One finished prompt; empty if it does not exist."),
    HTTPRoute("POST", "/history", post_history, "Remove prompts from the history.", body=_REMOVAL, statuses=_CHANGED),
    HTTPRoute("POST", "/interrupt", post_interrupt, "Interrupt the run in progress at its next step.",
          body=properties(prompt_id=STRING), statuses=_CHANGED),
    HTTPRoute("POST", "/free", post_free, "Release models and cached results.",
          body=properties(unload_models=BOOLEAN, free_memory=BOOLEAN), statuses=_CHANGED),
]  # fmt: skip
