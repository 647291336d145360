"""The files of a workflow: finding them on this computer, and uploading them under unique names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ....uniworld_core.errors import RunFailed, UniWorldError, shown
from ....uniworld_core.files import sha256_file
from ..problems import NodeRef, Problem
from ..registry.schema import Schemas
from ..storage import folders
from ..workflow.file import Workflow, patched_graph
from .client import ServerClient
from .node_infos import PICTURE_UPLOADS, RemoteRegistry

_ANNOTATED = re.compile(r"^(?P<name>.*?)\s?\[(?P<kind>input|output|temp)\]$", re.DOTALL)
_DIGEST, _STEM = 16, 80  # characters of an uploaded file's name


@dataclass(frozen=True)
class FileUse:
    """A file that an input refers to.

    Attributes:
        value: the value of the input, such as `cat.png [output]`.
        path: the local file; None if only the server can have it.
    """

    node_id: str
    class_type: str
    input_name: str
    value: str
    path: Path | None

    @property
    def place(self) -> tuple[str, str, str]:
        """Name, subfolder and kind of folder."""
        match = _ANNOTATED.match(self.value)
        name, kind = (match["name"], match["kind"]) if match else (self.value, "input")
        path = PurePosixPath(name.replace("\\", "/"))
        return path.name, "" if str(path.parent) == "." else str(path.parent), kind


def file_uses(prompt: Mapping[str, Any], registry: RemoteRegistry) -> tuple[list[FileUse], list[Problem]]:
    """Return the files that a workflow in API form refers to, and the problems with them.

    A choice with an upload option refers to a file. Any other choice does if its value is not one of its options but a file in
    the input folder. Nodes that no output needs are skipped.
    """
    schemas = Schemas(registry.classes)
    uses: list[FileUse] = []
    problems: list[Problem] = []
    for node_id in _reached(prompt, registry, schemas):
        class_type, inputs = prompt[node_id]["class_type"], prompt[node_id].get("inputs") or {}
        for spec in schemas[class_type].inputs.values():
            value = inputs.get(spec.name)
            if not isinstance(value, str) or not value or spec.type_name != "COMBO":
                continue
            uploads = registry.uploads(class_type, spec.name)
            is_option = value in (spec.choices or ()) and (class_type, spec.name, value) not in registry.allowed
            if not uploads and (not spec.choices or is_option):
                continue
            try:
                path = _local_file(value, must_be_picture=any(flag in PICTURE_UPLOADS for flag in uploads))
            except UniWorldError as error:
                problems.append(_problem(node_id, class_type, spec.name, value, str(error)))
                continue
            if uploads or path is not None:
                uses.append(FileUse(node_id, class_type, spec.name, value, path))
            if not uploads and path is not None:
                registry.allow(class_type, spec.name, value)
    return uses, problems


def _reached(prompt: Mapping[str, Any], registry: RemoteRegistry, schemas: Schemas) -> list[str]:
    """Return the output nodes and the nodes that they need, in the workflow's order."""
    known = {
        node_id: node["inputs"] if isinstance(node.get("inputs"), dict) else {}
        for node_id, node in prompt.items()
        if isinstance(node, dict) and isinstance(node.get("class_type"), str) and node["class_type"] in registry.classes
    }
    pending = [node_id for node_id in known if schemas[prompt[node_id]["class_type"]].is_output]
    seen = set(pending)
    while pending:
        node_id = pending.pop()
        for link in schemas[prompt[node_id]["class_type"]].used_links(known[node_id]).values():
            if link[0] in known and link[0] not in seen:
                seen.add(link[0])
                pending.append(link[0])
    return [node_id for node_id in known if node_id in seen]


def _local_file(value: str, must_be_picture: bool) -> Path | None:
    """Return the local file for a value; None if there is none.

    Raises:
        UniWorldError: the name points outside its folder, or the file is not an image but must be one.
    """
    current = folders.current()
    if value not in current.bound:
        match = _ANNOTATED.match(value)
        folders.check_relative(match["name"] if match else value)
    try:
        path = current.find_picture(value)
    except UniWorldError:
        return None
    if must_be_picture:
        from ..storage.pictures import check_picture

        check_picture(path)
    return path


def _problem(node_id: str, class_type: str, name: str, value: str, sentence: str) -> Problem:
    extra = {"input_name": name, "received_value": value}
    message = "Custom validation failed for node"
    return NodeRef(node_id, class_type).problem(
        "custom_validation_failed", message, f"{name} - {sentence}", sentence, extra
    )


async def missing_files(uses: list[FileUse], client: ServerClient, registry: RemoteRegistry) -> list[Problem]:
    """Return a problem for each file that is neither on this computer nor on the server."""
    problems = []
    for use in uses:
        if use.path is None and not _listed(use, registry) and not await client.has_file(*use.place):
            name, _, kind = use.place
            sentence = (
                f"the file {shown(name)} is neither in '{folders.current().of_kind(kind)}' nor on the server {client.url}. "
                "Put it there, or choose another."
            )
            problems.append(_problem(use.node_id, use.class_type, use.input_name, use.value, sentence))
    return problems


def _listed(use: FileUse, registry: RemoteRegistry) -> bool:
    """Return whether a file is one of the options of its input."""
    for entries in registry.described[use.class_type]["input"].values():
        entry = entries.get(use.input_name) if isinstance(entries, dict) else None
        if isinstance(entry, list) and entry:
            options = entry[1].get("options") if len(entry) > 1 and isinstance(entry[1], dict) else None
            choices = entry[0] if isinstance(entry[0], list) else options
            return isinstance(choices, list) and use.value in choices
    return False


def foreign_paths(prompt: Mapping[str, Any], client: ServerClient) -> list[str]:
    """Return a note for each value that is the path of a local file, which a remote server cannot read."""
    notes = []
    for node_id, node in prompt.items() if not client.address.loopback else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        for name, value in inputs.items() if isinstance(inputs, dict) else ():
            if isinstance(value, str) and len(value) < 4096 and _is_local_path(value):
                label = NodeRef(node_id, str(node.get("class_type") or ""))
                notes.append(
                    f"Node {label.node_id} ({label.class_type}): input '{name}' is the path of a file on this computer, "
                    f"{shown(value)}. It is not uploaded: the server reads that path on its own disk."
                )
    return notes


def _is_local_path(text: str) -> bool:
    try:
        return Path(text).is_absolute() and Path(text).is_file()
    except (OSError, ValueError):
        return False


@dataclass
class Uploader:
    """Uploads files to one server, once per content.

    Attributes:
        stored: names of the uploaded files by digest, extension and subfolder.
    """

    client: ServerClient
    stored: dict[tuple[str, str, str], str] = field(default_factory=dict)

    async def upload_all(self, workflow: Workflow, uses: list[FileUse], registry: RemoteRegistry) -> Workflow:
        """Upload the local files of a workflow, and return a copy that refers to the uploaded ones.

        Raises:
            RunFailed: a file cannot be read, or the server rejected it.
        """
        here = [use for use in uses if use.path is not None]
        if not here:
            return workflow
        changed = workflow.copied()
        for use in here:
            stored = await self._upload(use)
            changed.prompt[use.node_id]["inputs"][use.input_name] = stored
            # An editor form without this widget keeps the local name.
            patched = patched_graph(changed.graph, registry, use.node_id, use.input_name, stored)
            changed.graph = patched or changed.graph
        return changed

    async def _upload(self, use: FileUse) -> str:
        assert use.path is not None
        name, subfolder, _ = use.place
        subfolder = "" if use.value in folders.current().bound else subfolder
        try:
            digest = await asyncio.to_thread(sha256_file, use.path)
            suffix = PurePosixPath(name).suffix or use.path.suffix
            key = digest, suffix.lower(), subfolder
            if key not in self.stored:
                stem = re.sub(r"[^\w-]", "_", PurePosixPath(name).stem, flags=re.ASCII)[:_STEM] or "file"
                unique = f"{stem}-{digest[:_DIGEST]}{re.sub(r'[^.0-9A-Za-z]', '', suffix)}"
                self.stored[key] = await self.client.upload(use.path, unique, subfolder)
            return self.stored[key]
        except OSError as error:
            raise RunFailed(f"'{use.path}' cannot be read: {error.strerror}. Check the file.") from error
