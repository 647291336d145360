"""Routes of jobs, as newer editors call prompts: waiting, running and finished ones in one form."""

from __future__ import annotations

import json
import sqlite3

from aiohttp import web

from ..http.responses import RequestError, json_response, query_int, read_ids, read_object
from ..http.route import INTEGER, STRING, STRINGS, HTTPRoute, one_of, properties
from ..queue.store import ERROR, INTERRUPTED, PENDING, RUNNING, SUCCESS
from ..server import Server, server_of

_STATUS = {PENDING: "pending", RUNNING: "in_progress", SUCCESS: "completed", ERROR: "failed", INTERRUPTED: "cancelled"}
_STATE = {status: state for state, status in _STATUS.items()}
_SORTS = {"created_at": "created", "execution_duration": "COALESCE(ended - started, 0)"}
_MAX_PAGE = 1000


def job(row: sqlite3.Row) -> dict[str, object]:
    """Return a prompt in the form of the jobs API. Fields without a value yet are omitted."""
    entry = {
        "id": row["id"],
        "status": _STATUS[row["state"]],
        "priority": row["number"],
        "create_time": row["created"],
        "execution_start_time": row["started"],
        "execution_end_time": row["ended"],
        "execution_error": None if row["error"] is None else json.loads(row["error"]),
        "outputs_count": row["ui_count"] or 0,
        "previewable_outputs_count": row["ui_shown"] or 0,
        "preview_output": None if row["preview"] is None else json.loads(row["preview"]),
        "workflow_id": row["workflow"],
    }
    return {key: value for key, value in entry.items() if value is not None}


async def get_jobs(request: web.Request) -> web.Response:
    states = _states(request.query.get("status"))
    sort, order = request.query.get("sort_by", "created_at"), request.query.get("sort_order", "desc")
    if sort not in _SORTS or order not in ("asc", "desc"):
        raise RequestError(400, "invalid_query", f"Sort by {' or '.join(_SORTS)}, in order asc or desc.")
    limit, offset = query_int(request, "limit", _MAX_PAGE), query_int(request, "offset", 0)
    assert limit is not None
    assert offset is not None
    if limit < 1 or offset < 0:
        raise RequestError(400, "invalid_query", "The limit must be at least 1 and the offset at least 0.")
    limit = min(limit, _MAX_PAGE)
    by = f"{_SORTS[sort]} {order}, seq {order}"
    rows, total = server_of(request).store.jobs(states, request.query.get("workflow_id") or None, by, limit, offset)
    page = {"offset": offset, "limit": limit, "total": total, "has_more": offset + len(rows) < total}
    return json_response({"jobs": [job(row) for row in rows], "pagination": page})


def _states(text: str | None) -> list[str]:
    if not text:
        return list(_STATUS)
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in _STATE]
    if unknown:
        raise RequestError(
            400, "invalid_query", f"Unknown status {unknown[0][:40]!r}; choose from {', '.join(_STATE)}."
        )
    return [_STATE[word] for word in dict.fromkeys(words)] or list(_STATUS)


async def get_job(request: web.Request) -> web.Response:
    row = server_of(request).store.row(request.match_info["job_id"])
    if row is None:
        raise RequestError(404, "job_not_found", "Job not found.")
    entry = job(row)
    entry["workflow"] = {"prompt": json.loads(row["prompt"]), "extra_data": json.loads(row["extra"])}
    if row["done_order"] is not None:
        entry["outputs"] = json.loads(row["ui"])
        word = "success" if row["state"] == SUCCESS else "error"
        messages = json.loads(row["messages"])
        entry["execution_status"] = {"status_str": word, "completed": word == "success", "messages": messages}
    return json_response(entry)


async def cancel_job(request: web.Request) -> web.Response:
    server, job_id = server_of(request), request.match_info["job_id"]
    if server.store.row(job_id) is None:
        raise RequestError(404, "job_not_found", "Job not found.")
    return json_response({"cancelled": _cancel(server, job_id)})


async def cancel_jobs(request: web.Request) -> web.Response:
    server = server_of(request)
    body = await read_object(request, server.config.limits.json_bytes)
    ids = read_ids(body.get("job_ids"), server.config.limits.ids)
    return json_response({"cancelled": [one for one in ids if _cancel(server, one)]})


def _cancel(server: Server, job_id: str) -> bool:
    """Remove a job from the queue, or interrupt it. Returns False if it has already finished."""
    if server.store.delete_waiting([job_id]):
        server.worker.send_status()
        return True
    return server.worker.interrupt(job_id)


_ONE = {200: "The job.", 404: "Job not found."}
ROUTES = [
    HTTPRoute("GET", "/jobs", get_jobs, "A page of prompts, in any state or in selected ones.",
          {"status": STRING, "workflow_id": STRING, "sort_by": one_of(*_SORTS), "sort_order": one_of("asc", "desc"),
           "limit": INTEGER, "offset": INTEGER}, statuses={200: "A page.", 400: "Invalid query."}),
    HTTPRoute("GET", "/jobs/{job_id}", get_job, "A prompt with its graph and outputs.", statuses=_ONE),
    HTTPRoute("POST", "/jobs/{job_id}/cancel", cancel_job, "Interrupt a prompt, or remove it from the queue.",
          statuses=_ONE),
    HTTPRoute("POST", "/jobs/cancel", cancel_jobs, "Cancel several prompts.", body=properties(job_ids=STRINGS),
          statuses={200: "The ids of the cancelled prompts.", 400: "Invalid body.", 413: "Too large."}),
]  # fmt: skip
