"""What node packs bring besides nodes: templates, help pages and scripts, translations, blueprints.

Found where ComfyUI looks for it too: `workflows/*.json` with a picture beside it are templates (no subfolder is looked
into), `subgraphs/*.json` are blueprints, `locales/<language>/*.json` are translations, and the folder that the pack
calls WEB_DIRECTORY holds `docs/<Node>.md` and scripts.
"""

from __future__ import annotations

import hashlib
import sys
from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ....uniworld_core.json_text import BadJson, loads
from ..storage.folders import PACKAGE_ROOT, resolve_inside
from ..workflow.shipped import shipped

OWN_NAME = "uniworld"
_TEMPLATE_FOLDERS = ("workflows", "workflow", "example_workflows", "examples", "example")
_TEMPLATE_FILES = (".json", ".jpg", ".jpeg", ".png", ".webp")
_LOCALE_PARTS = ("nodeDefs", "commands", "settings")


@dataclass(frozen=True)
class Pack:
    """A node pack's folder.

    Attributes:
        name: by which the editor knows the pack; its nodes' `python_module` is `custom_nodes.<name>`.
        web: the folder served below `/extensions/<name>/`, if there is one.
    """

    name: str
    root: Path
    web: Path | None = None

    def templates(self) -> dict[str, Path]:
        """The workflows to start from, by name."""
        found: dict[str, Path] = {}
        for folder in _TEMPLATE_FOLDERS:
            for file in sorted((self.root / folder).glob("*.json")):
                found.setdefault(file.stem, file)
        return found

    def template_file(self, name: str) -> Path | None:
        """A file of a template: its graph or its picture. Raises UniWorldError for a name that is a trick.

        This package's may be named by their short names too.
        """
        short = shipped().get(name.rpartition(".")[0]) if self.name == OWN_NAME else None
        if short is not None:
            name = short.file.stem + Path(name).suffix
        for folder in _TEMPLATE_FOLDERS:
            base = self.root / folder
            path = resolve_inside(base, name)
            if path.suffix in _TEMPLATE_FILES and path.parent == base.resolve() and path.is_file():
                return path
        return None

    def web_file(self, name: str) -> Path | None:
        """A script or help page. Raises UniWorldError for a name that is a trick."""
        path = resolve_inside(self.web, name) if self.web is not None else None
        return path if path is not None and path.is_file() else None

    def scripts(self) -> list[str]:
        """Addresses of the pack's scripts for the editor."""
        if self.web is None:
            return []
        names = sorted(file.relative_to(self.web).as_posix() for file in self.web.rglob("*.js"))
        return [f"/extensions/{quote(self.name)}/{quote(name)}" for name in names]

    def blueprints(self) -> dict[str, dict[str, Any]]:
        """Subgraphs for the node library by a lasting id, with the file under "path"."""
        files = sorted((self.root / "subgraphs").glob("*.json"))
        return {
            hashlib.sha256(f"{self.name}/{file.name}".encode()).hexdigest(): {
                "source": "custom_node",
                "name": file.stem,
                "info": {"node_pack": f"custom_nodes.{self.name}"},
                "path": file,
            }
            for file in files
        }


def open_packs(folders: tuple[Path, ...]) -> list[Pack]:
    """This package and the packs of these folders, which are loaded already."""
    return [Pack(OWN_NAME, PACKAGE_ROOT, PACKAGE_ROOT / "nodes" / "web"), *(_open_pack(folder) for folder in folders)]


def _open_pack(folder: Path) -> Pack:
    entry = (folder / "__init__.py").resolve()
    module = next((one for one in list(sys.modules.values()) if _is_from(one, entry)), None)
    named = getattr(module, "WEB_DIRECTORY", None)
    web = (folder / named).resolve() if isinstance(named, str) else None
    # A pack is other people's code, but its mistakes must not serve the whole disk.
    inside = web is not None and web.is_dir() and web.is_relative_to(folder.resolve())
    return Pack(folder.resolve().name, folder.resolve(), web if inside else None)


def _is_from(module: object, entry: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.endswith("__init__.py") and Path(file).resolve() == entry


def stock_templates() -> list[dict[str, object]]:
    """This package's templates in the place of the editor's own, whose cards alone have titles and descriptions."""
    cards = [
        {
            "name": one.name,
            "title": one.title,
            "description": one.description,
            "mediaType": "image",
            "mediaSubtype": "jpg",
            "tags": list(one.tags),
            "models": ["UniWorld-V1"],
        }
        for one in shipped().values()
    ]
    return [{"moduleName": "default", "title": "UniWorld", "type": "image", "isEssential": True, "templates": cards}]


def stock_template_file(name: str) -> Path | None:
    """A file of one of them: `edit.json`, or its card's picture `edit-1.jpg`."""
    stem, _, suffix = name.rpartition(".")
    one = shipped().get(stem if suffix == "json" else stem.removesuffix("-1"))
    path = one.file.with_suffix(f".{suffix}") if one is not None and suffix in ("json", "jpg") else None
    return path if path is not None and path.is_file() else None


def translations(packs: list[Pack]) -> dict[str, dict[str, object]]:
    """The packs' texts by language, in the form of ComfyUI's `/i18n`."""
    # The name on the tab of a template that was opened.
    titles = {"templateWorkflows": {"template": {one.name: one.title for one in shipped().values()}}}
    merged: dict[str, dict[str, object]] = {"en": {**titles, **_rejected("{nodeName}: {rawDetails}")}}
    merged["zh"] = _rejected("{nodeName}：{rawDetails}")
    for pack in packs:
        for folder in sorted(path for path in (pack.root / "locales").glob("*") if path.is_dir()):
            texts = _read(folder / "main.json")
            for part in _LOCALE_PARTS:
                named = _read(folder / f"{part}.json")
                if named:
                    texts[part] = _merged(texts.get(part, {}), named)
            if texts:
                merged[folder.name] = _merged(merged.get(folder.name, {}), texts)
    return merged


def _rejected(text: str) -> dict[str, object]:
    """The editor's text for a value that a node's own check rejects: with the reason, which its own text leaves out."""
    return {"errorCatalog": {"validationErrors": {"custom_validation_failed": {"toastMessage": text}}}}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = loads(path.read_bytes().removeprefix(BOM_UTF8), allow_duplicates=True) if path.is_file() else {}
    except (OSError, BadJson):
        return {}  # a pack's broken translation leaves its nodes in English
    return data if isinstance(data, dict) else {}


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, object]:
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
