"""Pictures in and out: `/view`, the two uploads, and lists of what lies in the folders."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import IO

from aiohttp import web

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.json_text import BadJson, loads
from ...storage import folders
from ...storage.folders import check_relative, resolve_inside
from ..http.decoding import decoded, in_thread
from ..http.files import foreign_headers, numbered, send_foreign, write_atomic
from ..http.forms import Form, picture_name, read_form
from ..http.images import channel_of, check_picture, preview_of, with_alpha_of
from ..http.replies import Refused, reply
from ..http.route import STRING, HTTPRoute, one_of, properties
from ..server import server_of

KINDS = ("input", "output", "temp")
_MAX_LISTED = 20_000


def find_file(name: str, kind: str, subfolder: str = "") -> Path | None:
    """The file that a client names, None if there is none; `cat.png [input]` names its folder itself.

    Raises:
        Refused: the kind is none of `KINDS`, or a name leads out of the folder.
    """
    for known in KINDS:
        if name.endswith(f"[{known}]"):
            name, kind = name[: -len(known) - 2].rstrip(), known
    if kind not in KINDS:
        raise Refused(400, "invalid_name", f"{kind[:40]!r} is no folder; there are {', '.join(KINDS)}.")
    current = folders.current()
    bases = [current.of_kind(kind), *([current.shipped_input] if kind == "input" and current.shipped_input else [])]
    try:
        whole = check_relative(name)
        if subfolder:
            whole = f"{check_relative(subfolder.rstrip('/'), 'subfolder')}/{whole}"
        paths = [resolve_inside(base, whole) for base in bases]
    except UniWorldError as error:
        raise Refused(400, "invalid_name", str(error)) from error
    return next((path for path in paths if path.is_file()), None)


async def get_view(request: web.Request) -> web.StreamResponse:
    query = request.query
    if not query.get("filename"):
        raise Refused(404, "not_found", "Name a file: ?filename=...")
    path = find_file(query["filename"], query.get("type", "output"), query.get("subfolder", ""))
    if path is None:
        raise Refused(404, "not_found", "There is no such file.")
    channel = query.get("channel", "")
    try:
        if "preview" in query:
            data, kind = await decoded(preview_of, path, query["preview"], channel)
            return web.Response(body=data, headers=foreign_headers(path.name, kind))
        if channel in ("rgb", "a"):
            data, kind = await decoded(channel_of, path, channel)
            return web.Response(body=data, headers=foreign_headers(path.name, kind))
    except UniWorldError as error:
        raise Refused(400, "invalid_image", str(error)) from error
    return await send_foreign(request, path)


# --- uploads ---------------------------------------------------------------------------------------------------------


async def post_image(request: web.Request) -> web.Response:
    form = await _form(request)
    await _checked(form)
    return await _keep(form, None)


async def post_mask(request: web.Request) -> web.Response:
    form = await _form(request)
    await _checked(form)
    try:
        ref = loads(form.text("original_ref"))
        name, kind, subfolder = (ref["filename"], ref.get("type") or "output", ref.get("subfolder") or "")
    except (BadJson, TypeError, KeyError, AttributeError) as error:
        raise Refused(400, "invalid_original", '"original_ref" must be JSON that names the masked picture.') from error
    if not all(isinstance(one, str) for one in (name, kind, subfolder)):
        raise Refused(400, "invalid_original", '"original_ref" must name the masked picture by texts.')
    original = find_file(name, kind, subfolder)
    if original is None:
        raise Refused(400, "invalid_original", f"There is no picture {name[:80]!r} to mask.")
    return await _keep(form, original)


async def _form(request: web.Request) -> Form:
    return await read_form(request, server_of(request).config.limits.upload_bytes)


async def _checked(form: Form) -> None:
    try:
        await decoded(check_picture, form.file, form.filename[:80])
    except UniWorldError as error:
        raise Refused(400, "invalid_image", str(error)) from error


async def _keep(form: Form, original: Path | None) -> web.Response:
    """Write the picture, or the original with its transparency, where the form says, and tell under which name."""
    kind, subfolder = form.text("type") or "input", form.text("subfolder").rstrip("/")
    if kind not in KINDS:
        raise Refused(400, "invalid_name", f"{kind[:40]!r} is no folder; there are {', '.join(KINDS)}.")
    try:
        name = check_relative(form.filename)
        if "/" in name:
            raise UniWorldError(f'{name[:80]!r} names a folder. Name it in "subfolder".')
        base = folders.current().of_kind(kind)
        folder = resolve_inside(base, subfolder, "subfolder") if subfolder else base
        replace = form.text("overwrite").lower() in ("true", "1")
        masked = None if original is None else (await decoded(with_alpha_of, original, form.file))[0]
        kept = await in_thread(lambda: _write(folder, name, _content(form.file) if masked is None else masked, replace))
    except UniWorldError as error:
        raise Refused(400, "invalid_image", str(error)) from error
    except OSError as error:
        raise Refused(400, "not_kept", f"The picture cannot be written: {error.strerror}.") from error
    return reply({"name": kept, "subfolder": subfolder, "type": kind})


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _write(folder: Path, name: str, data: bytes, replace: bool) -> str:
    for candidate in numbered(check_relative(picture_name(name, data))):
        path = resolve_inside(folder, candidate)
        if write_atomic(path, data, replace) or (path.is_file() and path.read_bytes() == data):
            return candidate
    raise UniWorldError(f"There are too many pictures called {name!r}.")


# --- lists -----------------------------------------------------------------------------------------------------------


async def get_files(request: web.Request) -> web.Response:
    kind = request.match_info["kind"]
    if kind not in KINDS:
        raise Refused(400, "invalid_name", f"{kind[:40]!r} is no folder; there are {', '.join(KINDS)}.")
    return reply(await asyncio.to_thread(_newest_first, folders.current().of_kind(kind)))


def _newest_first(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    return [file.name for file in sorted(files, key=lambda file: -file.stat().st_mtime)[:_MAX_LISTED]]


async def get_folder_paths(request: web.Request) -> web.Response:
    host = server_of(request).host
    from ....host import MODEL_FOLDERS

    return reply({kind: [str(path) for path in host.model_folders(kind)] for kind in MODEL_FOLDERS})


_FORM = {
    **properties(image={"type": "string", "format": "binary"}, subfolder=STRING, type=one_of(*KINDS), overwrite=STRING),
    "required": ["image"],
}
_MASK_FORM = {
    **_FORM,
    "properties": {**_FORM["properties"], "original_ref": STRING},
    "required": ["image", "original_ref"],
}
_KEPT = {200: "Where it lies.", 400: "No picture, or a wrong name.", 413: "Too large."}

ROUTES = [
    HTTPRoute("GET", "/view", get_view, "A picture, or a smaller copy of it.",
          {"filename": STRING, "type": one_of(*KINDS), "subfolder": STRING, "preview": STRING,
           "channel": one_of("rgba", "rgb", "a")},
          statuses={200: "The file.", 206: "A part.", 304: "Not changed.", 400: "A wrong name.", 404: "No such file."}),
    HTTPRoute("POST", "/upload/image", post_image, "Keep a picture.", body=_FORM, body_type="multipart/form-data", statuses=_KEPT),
    HTTPRoute("POST", "/upload/mask", post_mask, "Keep a picture with a mask as its transparency.", body=_MASK_FORM,
          body_type="multipart/form-data", statuses=_KEPT),
    HTTPRoute("GET", "/internal/files/{kind}", get_files, "Names in a folder, the newest first.",
          statuses={200: "Names.", 400: "No such folder."}),
    HTTPRoute("GET", "/internal/folder_paths", get_folder_paths, "Where models lie."),
]  # fmt: skip
