"""Routes of the user's settings and files, such as saved workflows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.files import PART_SUFFIX
from .....uniworld_core.json_text import BadJson, loads
from ...storage.folders import resolve_inside
from ..http.files import SANDBOX, send_untrusted, write_atomic
from ..http.responses import RequestError, json_response, query_flag, read_body, read_json, read_object
from ..http.route import BOOLEAN, OBJECT, STRING, HTTPRoute
from ..server import Server, server_of

_SETTINGS = "comfy.settings.json"
# Defaults that differ from the editor's: it must not request release notes from another host.
_DEFAULTS = {"Comfy.Notification.ShowVersionUpdates": False}
# Never sent: with this set, an editor without a draft opens a default graph whose nodes do not exist here.
_HIDDEN_SETTING = "Comfy.TutorialCompleted"

# Default contents of files that every editor requests but few users have: a 404 would show up as an error in the console.
_EMPTY = {"comfy.templates.json": "[]", "workflows/.index.json": '{"favorites": []}'}


async def get_users(_: web.Request) -> web.Response:
    return json_response({"storage": "server", "migrated": True})


# --- settings --------------------------------------------------------------------------------------------------------


def _read_settings(server: Server) -> dict[str, object]:
    try:
        data = loads((server.user / _SETTINGS).read_bytes(), allow_nan=True, allow_duplicates=True)
    except (OSError, BadJson):
        return {}
    return data if isinstance(data, dict) else {}


def _visible_settings(server: Server) -> dict[str, object]:
    settings = {**_DEFAULTS, **_read_settings(server)}
    settings.pop(_HIDDEN_SETTING, None)
    return settings


async def get_settings(request: web.Request) -> web.Response:
    return json_response(_visible_settings(server_of(request)))


async def get_setting(request: web.Request) -> web.Response:
    return json_response(_visible_settings(server_of(request)).get(request.match_info["key"]))


async def post_settings(request: web.Request) -> web.Response:
    server = server_of(request)
    _save_settings(server, await read_object(request, server.config.limits.json_bytes))
    return web.Response()


async def post_setting(request: web.Request) -> web.Response:
    server = server_of(request)
    value = await read_json(request, server.config.limits.json_bytes)
    _save_settings(server, {request.match_info["key"]: value})
    return web.Response()


def _save_settings(server: Server, changes: dict[str, object]) -> None:
    text = json.dumps({**_read_settings(server), **changes}, indent=4)
    if len(text) > server.config.limits.json_bytes:
        raise RequestError(413, "too_large", "The settings exceed the size limit.")
    write_atomic(server.user / _SETTINGS, text.encode())


# --- files -----------------------------------------------------------------------------------------------------------


def _user_path(server: Server, name: str) -> Path:
    try:
        return resolve_inside(server.user, name)
    except UniWorldError as error:
        raise RequestError(403, "invalid_name", str(error)) from error


def _existing(request: web.Request) -> Path:
    path = _user_path(server_of(request), request.match_info["file"])
    if not path.is_file():
        raise RequestError(404, "not_found", "File not found.")
    return path


def _info(path: Path, base: Path) -> dict[str, object]:
    about = path.stat()
    name = path.relative_to(base.resolve()).as_posix()
    return {"path": name, "size": about.st_size, "modified": about.st_mtime, "created": about.st_ctime}


async def list_userdata(request: web.Request) -> web.Response:
    name = request.query.get("dir", "").rstrip("/")
    if not name:
        raise RequestError(400, "no_folder", "Directory not provided")
    folder = _user_path(server_of(request), name)
    if not folder.is_dir():
        raise RequestError(404, "not_found", "Directory not found")
    files = await asyncio.to_thread(_files, folder, query_flag(request, "recurse"))
    if query_flag(request, "full_info"):
        return json_response([_info(file, folder) for file in files])
    names = [file.relative_to(folder).as_posix() for file in files]
    return json_response([[name, *name.split("/")] for name in names] if query_flag(request, "split") else names)


def _files(folder: Path, deep: bool) -> list[Path]:
    # Symlinks are skipped, since they may lead out of the folder.
    found = (file for file in (folder.rglob("*") if deep else folder.glob("*")) if not file.is_symlink())
    return sorted(file for file in found if file.is_file() and not file.name.endswith(PART_SUFFIX))


async def list_userdata_v2(request: web.Request) -> web.Response:
    server, name = server_of(request), request.query.get("path", "").rstrip("/")
    folder = _user_path(server, name) if name else server.user
    if not folder.is_dir():
        if not name:
            return json_response([])
        raise RequestError(404, "not_found", "Requested path not found")
    return json_response(await asyncio.to_thread(_entries, folder, server.user.resolve()))


def _entries(folder: Path, base: Path) -> list[dict[str, object]]:
    entries: list[dict[str, Any]] = []
    for path in folder.resolve().rglob("*"):
        if path.is_symlink():
            continue
        entry: dict[str, object] = {"name": path.name, "path": path.relative_to(base).as_posix(), "type": "directory"}
        if path.is_file():
            about = path.stat()
            entry.update(type="file", size=about.st_size, modified=about.st_mtime)
        entries.append(entry)
    return sorted(entries, key=lambda entry: (entry["type"] != "directory", entry["name"].lower()))


async def get_userdata(request: web.Request) -> web.StreamResponse:
    name = request.match_info["file"]
    if name == "user.css":
        return await get_user_css(request)
    if name in _EMPTY and not _user_path(server_of(request), name).exists():
        return web.Response(text=_EMPTY[name], content_type="application/json", headers=SANDBOX)
    return await send_untrusted(request, _existing(request))


async def post_userdata(request: web.Request) -> web.Response:
    server = server_of(request)
    path = _user_path(server, request.match_info["file"])
    data = await read_body(request, server.config.limits.json_bytes)
    return _written(request, path, lambda replace: write_atomic(path, data, replace))


async def delete_userdata(request: web.Request) -> web.Response:
    _existing(request).unlink()
    return web.Response(status=204)


async def move_userdata(request: web.Request) -> web.Response:
    source, target = _existing(request), _user_path(server_of(request), request.match_info["dest"])

    def move(replace: bool) -> bool:
        if not replace and target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        return True

    return _written(request, target, move)


def _written(request: web.Request, path: Path, write: Any) -> web.Response:
    """Write or move a file, and respond with its path or description."""
    try:
        done = write(query_flag(request, "overwrite", default=True))
    except OSError as error:
        raise RequestError(400, "not_kept", f"The file cannot be written under this name: {error.strerror}.") from error
    if not done:
        raise RequestError(409, "exists", "File already exists")
    about = _info(path, server_of(request).user)
    return json_response(about if query_flag(request, "full_info") else about["path"])


async def get_user_css(request: web.Request) -> web.StreamResponse:
    path = server_of(request).user / "user.css"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() and not path.is_symlink() else ""
    return web.Response(text=text, content_type="text/css", headers=SANDBOX)


_FLAGS = {"overwrite": BOOLEAN, "full_info": BOOLEAN}
_FILE = {
    200: "The file.",
    206: "The requested range.",
    304: "Not modified.",
    403: "Invalid name.",
    404: "File not found.",
}
_CHANGE = {200: "Path or description of the file.", 400: "The file cannot be written.", 403: "Invalid name.",
           404: "File not found.", 409: "The file already exists.", 413: "Too large."}  # fmt: skip
_SET = {200: "Done.", 400: "Invalid body.", 413: "Too large."}

ROUTES = [
    HTTPRoute("GET", "/users", get_users, "How users are stored: there is one, on the server."),
    HTTPRoute("GET", "/settings", get_settings, "All settings."),
    HTTPRoute("GET", "/settings/{key}", get_setting, "One setting, or null."),
    HTTPRoute("POST", "/settings", post_settings, "Change settings.", body=OBJECT, statuses=_SET),
    HTTPRoute("POST", "/settings/{key}", post_setting, "Change one setting.", body={}, statuses=_SET),
    HTTPRoute("GET", "/userdata", list_userdata, "Files in one of the user's folders.",
          {"dir": STRING, "recurse": BOOLEAN, "full_info": BOOLEAN, "split": BOOLEAN},
          statuses={200: "Files.", 400: "No folder given.", 403: "Invalid name.", 404: "Folder not found."}),
    HTTPRoute("GET", "/v2/userdata", list_userdata_v2, "The user's files and folders.", {"path": STRING},
          statuses={200: "Entries.", 403: "Invalid name.", 404: "Folder not found."}),
    HTTPRoute("GET", "/userdata/{file}", get_userdata, "One of the user's files. Slashes in its name are encoded as %2F.",
          statuses=_FILE),
    HTTPRoute("POST", "/userdata/{file}", post_userdata, "Save a file.", _FLAGS, {"type": "string", "format": "binary"},
          "application/octet-stream", _CHANGE),
    HTTPRoute("DELETE", "/userdata/{file}", delete_userdata, "Delete a file.",
          statuses={204: "Deleted.", 403: "Invalid name.", 404: "File not found."}),
    HTTPRoute("POST", "/userdata/{file}/move/{dest}", move_userdata, "Rename a file.", _FLAGS, statuses=_CHANGE),
    HTTPRoute("GET", "/user.css", get_user_css, "The user's own style sheet."),
]  # fmt: skip
