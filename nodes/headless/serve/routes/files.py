"""Routes of pictures: `/view`, the uploads, and the lists of files."""

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
from ..http.files import numbered, send_untrusted, untrusted_headers, write_atomic
from ..http.forms import Form, picture_name, read_form
from ..http.images import channel_of, check_picture, preview_of, with_alpha_of
from ..http.responses import RequestError, json_response
from ..http.route import STRING, HTTPRoute, one_of, properties
from ..server import server_of

KINDS = ("input", "output", "temp")
_MAX_LISTED = 20_000


def find_file(name: str, kind: str, subfolder: str = "") -> Path | None:
    """Return the file that a client names; None if it does not exist.

    As in ComfyUI, a name such as `cat.png [input]` overrides `kind`.

    Raises:
        RequestError: the kind is not one of `KINDS`, or the name leads out of the folder.
    """
    for known in KINDS:
        if name.endswith(f"[{known}]"):
            name, kind = name[: -len(known) - 2].rstrip(), known
    if kind not in KINDS:
        raise RequestError(400, "invalid_name", f"Unknown folder {kind[:40]!r}; choose one of {', '.join(KINDS)}.")
    current = folders.current()
    bases = [current.of_kind(kind), *([current.shipped_input] if kind == "input" and current.shipped_input else [])]
    try:
        whole = check_relative(name)
        if subfolder:
            whole = f"{check_relative(subfolder.rstrip('/'), 'subfolder')}/{whole}"
        paths = [resolve_inside(base, whole) for base in bases]
    except UniWorldError as error:
        raise RequestError(400, "invalid_name", str(error)) from error
    return next((path for path in paths if path.is_file()), None)


async def get_view(request: web.Request) -> web.StreamResponse:
    query = request.query
    if not query.get("filename"):
        raise RequestError(404, "not_found", "The query parameter 'filename' is missing.")
    path = find_file(query["filename"], query.get("type", "output"), query.get("subfolder", ""))
    if path is None:
        raise RequestError(404, "not_found", "File not found.")
    channel = query.get("channel", "")
    try:
        if "preview" in query:
            data, kind = await decoded(preview_of, path, query["preview"], channel)
            return web.Response(body=data, headers=untrusted_headers(path.name, kind))
        if channel in ("rgb", "a"):
            data, kind = await decoded(channel_of, path, channel)
            return web.Response(body=data, headers=untrusted_headers(path.name, kind))
    except UniWorldError as error:
        raise RequestError(400, "invalid_image", str(error)) from error
    return await send_untrusted(request, path)


# --- uploads ---------------------------------------------------------------------------------------------------------


async def post_image(request: web.Request) -> web.Response:
    form = await _form(request)
    await _check(form)
    return await _save(form, None)


async def post_mask(request: web.Request) -> web.Response:
    form = await _form(request)
    await _check(form)
    try:
        ref = loads(form.text("original_ref"))
        name, kind, subfolder = (ref["filename"], ref.get("type") or "output", ref.get("subfolder") or "")
    except (BadJson, TypeError, KeyError, AttributeError) as error:
        raise RequestError(
            400, "invalid_original", '"original_ref" must be JSON that names the masked picture.'
        ) from error
    if not all(isinstance(one, str) for one in (name, kind, subfolder)):
        raise RequestError(400, "invalid_original", '"original_ref" must contain only strings.')
    original = find_file(name, kind, subfolder)
    if original is None:
        raise RequestError(400, "invalid_original", f"The picture {name[:80]!r} does not exist.")
    return await _save(form, original)


async def _form(request: web.Request) -> Form:
    return await read_form(request, server_of(request).config.limits.upload_bytes)


async def _check(form: Form) -> None:
    try:
        await decoded(check_picture, form.file, form.filename[:80])
    except UniWorldError as error:
        raise RequestError(400, "invalid_image", str(error)) from error


async def _save(form: Form, original: Path | None) -> web.Response:
    """Write the picture, or the original with its alpha channel, to the form's folder, and respond with its name."""
    kind, subfolder = form.text("type") or "input", form.text("subfolder").rstrip("/")
    if kind not in KINDS:
        raise RequestError(400, "invalid_name", f"Unknown folder {kind[:40]!r}; choose one of {', '.join(KINDS)}.")
    try:
        name = check_relative(form.filename)
        if "/" in name:
            raise UniWorldError(f'{name[:80]!r} contains a folder. Send the folder as "subfolder".')
        base = folders.current().of_kind(kind)
        folder = resolve_inside(base, subfolder, "subfolder") if subfolder else base
        replace = form.text("overwrite").lower() in ("true", "1")
        masked = None if original is None else (await decoded(with_alpha_of, original, form.file))[0]
        kept = await in_thread(lambda: _write(folder, name, _content(form.file) if masked is None else masked, replace))
    except UniWorldError as error:
        raise RequestError(400, "invalid_image", str(error)) from error
    except OSError as error:
        raise RequestError(400, "not_kept", f"The picture cannot be written: {error.strerror}.") from error
    return json_response({"name": kept, "subfolder": subfolder, "type": kind})


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _write(folder: Path, name: str, data: bytes, replace: bool) -> str:
    for candidate in numbered(check_relative(picture_name(name, data))):
        path = resolve_inside(folder, candidate)
        if write_atomic(path, data, replace) or (path.is_file() and path.read_bytes() == data):
            return candidate
    raise UniWorldError(f"Too many pictures are named {name!r}. Choose another name.")


# --- lists -----------------------------------------------------------------------------------------------------------


async def get_files(request: web.Request) -> web.Response:
    kind = request.match_info["kind"]
    if kind not in KINDS:
        raise RequestError(400, "invalid_name", f"Unknown folder {kind[:40]!r}; choose one of {', '.join(KINDS)}.")
    return json_response(await asyncio.to_thread(_newest_first, folders.current().of_kind(kind)))


def _newest_first(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    return [file.name for file in sorted(files, key=lambda file: -file.stat().st_mtime)[:_MAX_LISTED]]


async def get_folder_paths(request: web.Request) -> web.Response:
    host = server_of(request).host
    from ....host import MODEL_FOLDERS

    return json_response({kind: [str(path) for path in host.model_folders(kind)] for kind in MODEL_FOLDERS})


_FORM = {
    **properties(image={"type": "string", "format": "binary"}, subfolder=STRING, type=one_of(*KINDS), overwrite=STRING),
    "required": ["image"],
}
_MASK_FORM = {
    **_FORM,
    "properties": {**_FORM["properties"], "original_ref": STRING},
    "required": ["image", "original_ref"],
}
_SAVED = {200: "Its name and folder.", 400: "Not a picture, or an invalid name.", 413: "Too large."}

ROUTES = [
    HTTPRoute("GET", "/view", get_view, "A picture, or a compressed preview of it.",
          {"filename": STRING, "type": one_of(*KINDS), "subfolder": STRING, "preview": STRING,
           "channel": one_of("rgba", "rgb", "a")},
          statuses={200: "The file.", 206: "The requested range.", 304: "Not modified.", 400: "Invalid name.",
                    404: "File not found."}),
    HTTPRoute("POST", "/upload/image", post_image, "Upload a picture.", body=_FORM, body_type="multipart/form-data",
          statuses=_SAVED),
    HTTPRoute("POST", "/upload/mask", post_mask, "Save a picture with an uploaded mask as its alpha channel.",
          body=_MASK_FORM, body_type="multipart/form-data", statuses=_SAVED),
    HTTPRoute("GET", "/internal/files/{kind}", get_files, "File names in a folder, newest first.",
          statuses={200: "File names.", 400: "Unknown folder."}),
    HTTPRoute("GET", "/internal/folder_paths", get_folder_paths, "The model folders."),
]  # fmt: skip
