"""Prompts as the jobs that newer editors list: waiting, running and ended ones in one form."""

from __future__ import annotations

import json
import sqlite3

from aiohttp import web

from ..http.replies import Refused, query_int, read_ids, read_object, reply
from ..http.route import INTEGER, STRING, STRINGS, HTTPRoute, one_of, properties
from ..queue.store import ERROR, INTERRUPTED, PENDING, RUNNING, SUCCESS
from ..server import Server, server_of

_STATUS = {PENDING: "pending", RUNNING: "in_progress", SUCCESS: "completed", ERROR: "failed", INTERRUPTED: "cancelled"}
_STATE = {status: state for state, status in _STATUS.items()}
_SORTS = {"created_at": "created", "execution_duration": "COALESCE(ended - started, 0)"}
_MAX_PAGE = 1000


def job(row: sqlite3.Row) -> dict[str, object]:
    """A prompt in the form of a list of jobs; what is not known yet is left out."""
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
        raise Refused(400, "invalid_query", f"Jobs are sorted by {' or '.join(_SORTS)}, asc or desc.")
    limit, offset = query_int(request, "limit", _MAX_PAGE), query_int(request, "offset", 0)
    assert limit is not None
    assert offset is not None
    if limit < 1 or offset < 0:
        raise Refused(400, "invalid_query", "A page has a limit of 1 or more and an offset of 0 or more.")
    limit = min(limit, _MAX_PAGE)
    by = f"{_SORTS[sort]} {order}, seq {order}"
    rows, total = server_of(request).store.jobs(states, request.query.get("workflow_id") or None, by, limit, offset)
    page = {"offset": offset, "limit": limit, "total": total, "has_more": offset + len(rows) < total}
    return reply({"jobs": [job(row) for row in rows], "pagination": page})


def _states(text: str | None) -> list[str]:
    if not text:
        return list(_STATUS)
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in _STATE]
    if unknown:
        raise Refused(400, "invalid_query", f"{unknown[0][:40]!r} is no status; there are {', '.join(_STATE)}.")
    return [_STATE[word] for word in dict.fromkeys(words)] or list(_STATUS)


async def get_job(request: web.Request) -> web.Response:
    row = server_of(request).store.row(request.match_info["job_id"])
    if row is None:
        raise Refused(404, "job_not_found", "There is no such job.")
    entry = job(row)
    entry["workflow"] = {"prompt": json.loads(row["prompt"]), "extra_data": json.loads(row["extra"])}
    if row["done_order"] is not None:
        entry["outputs"] = json.loads(row["ui"])
        word = "success" if row["state"] == SUCCESS else "error"
        messages = json.loads(row["messages"])
        entry["execution_status"] = {"status_str": word, "completed": word == "success", "messages": messages}
    return reply(entry)


async def cancel_job(request: web.Request) -> web.Response:
    server, job_id = server_of(request), request.match_info["job_id"]
    if server.store.row(job_id) is None:
        raise Refused(404, "job_not_found", "There is no such job.")
    return reply({"cancelled": _cancel(server, job_id)})


async def cancel_jobs(request: web.Request) -> web.Response:
    server = server_of(request)
    body = await read_object(request, server.config.limits.json_bytes)
    ids = read_ids(body.get("job_ids"), server.config.limits.ids)
    return reply({"cancelled": [one for one in ids if _cancel(server, one)]})


def _cancel(server: Server, job_id: str) -> bool:
    """Take a job out of the queue, or stop it; False for one that has ended."""
    if server.store.drop_waiting([job_id]):
        server.worker.tell_status()
        return True
    return server.worker.interrupt(job_id)


_ONE = {200: "The job.", 404: "No such job."}
ROUTES = [
    HTTPRoute("GET", "/jobs", get_jobs, "A page of prompts in any state.",
          {"status": STRING, "workflow_id": STRING, "sort_by": one_of(*_SORTS), "sort_order": one_of("asc", "desc"),
           "limit": INTEGER, "offset": INTEGER}, statuses={200: "A page.", 400: "A wrong query."}),
    HTTPRoute("GET", "/jobs/{job_id}", get_job, "One prompt with its graph and outputs.", statuses=_ONE),
    HTTPRoute("POST", "/jobs/{job_id}/cancel", cancel_job, "Stop a prompt, or take it out of the queue.", statuses=_ONE),
    HTTPRoute("POST", "/jobs/cancel", cancel_jobs, "Stop several prompts.", body=properties(job_ids=STRINGS),
          statuses={200: "The ids of those stopped.", 400: "No such body.", 413: "Too large."}),
]  # fmt: skip
