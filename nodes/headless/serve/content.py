"""Content of node packs besides nodes: templates, help pages, scripts, translations and blueprints.

The locations are ComfyUI's: `workflows/*.json`, each with a picture of the same name, are templates (subfolders are not
searched), `subgraphs/*.json` are blueprints, `locales/<language>/*.json` are translations, and the pack's WEB_DIRECTORY
contains `docs/<Node>.md` and scripts.
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
        name: the pack's name in the editor; its nodes' `python_module` is `custom_nodes.<name>`.
        web: the folder that is served below `/extensions/<name>/`, if any.
    """

    name: str
    root: Path
    web: Path | None = None

    def templates(self) -> dict[str, Path]:
        """Return the template workflows by name."""
        found: dict[str, Path] = {}
        for folder in _TEMPLATE_FOLDERS:
            for file in sorted((self.root / folder).glob("*.json")):
                found.setdefault(file.stem, file)
        return found

    def template_file(self, name: str) -> Path | None:
        """Return a template's graph or picture; None if it does not exist. This package's templates have short names too.

        Raises:
            UniWorldError: the name leads out of the folder.
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
        """Return a script or help page; None if it does not exist. Raises UniWorldError if it is outside the folder."""
        path = resolve_inside(self.web, name) if self.web is not None else None
        return path if path is not None and path.is_file() else None

    def scripts(self) -> list[str]:
        """Return the URLs of the pack's editor scripts."""
        if self.web is None:
            return []
        names = sorted(file.relative_to(self.web).as_posix() for file in self.web.rglob("*.js"))
        return [f"/extensions/{quote(self.name)}/{quote(name)}" for name in names]

    def blueprints(self) -> dict[str, dict[str, Any]]:
        """Return the blueprints for the node library by a stable id, each with its file under "path"."""
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
    """Return this package and the packs of these folders. Their modules must already be loaded."""
    return [Pack(OWN_NAME, PACKAGE_ROOT, PACKAGE_ROOT / "nodes" / "web"), *(_open_pack(folder) for folder in folders)]


def _open_pack(folder: Path) -> Pack:
    entry = (folder / "__init__.py").resolve()
    module = next((one for one in list(sys.modules.values()) if _is_from(one, entry)), None)
    named = getattr(module, "WEB_DIRECTORY", None)
    web = (folder / named).resolve() if isinstance(named, str) else None
    # A wrong WEB_DIRECTORY, such as "/", must not expose files outside the pack.
    inside = web is not None and web.is_dir() and web.is_relative_to(folder.resolve())
    return Pack(folder.resolve().name, folder.resolve(), web if inside else None)


def _is_from(module: object, entry: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.endswith("__init__.py") and Path(file).resolve() == entry


def stock_templates() -> list[dict[str, object]]:
    """Return this package's templates in the form of the editor's own list.

    The editor shows titles and descriptions only for its own templates, not for those of node packs.
    """
    cards = [
        {
            "name": one.name,
            "title": one.title,
            "description": one.description,
            "mediaType": "image",
            "mediaSubtype": "jpg",
            "tags": list(one.tags),
            "models": [one.needs_model or "UniWorld-V1"],
        }
        for one in shipped().values()
        if not one.needs_comfyui
    ]
    return [{"moduleName": "default", "title": "UniWorld", "type": "image", "isEssential": True, "templates": cards}]


def stock_template_file(name: str) -> Path | None:
    """Return a file of a stock template: `edit.json`, or its card's picture `edit-1.jpg`; None if it does not exist."""
    stem, _, suffix = name.rpartition(".")
    one = shipped().get(stem if suffix == "json" else stem.removesuffix("-1"))
    path = one.file.with_suffix(f".{suffix}") if one is not None and suffix in ("json", "jpg") else None
    return path if path is not None and path.is_file() else None


def translations(packs: list[Pack]) -> dict[str, dict[str, object]]:
    """Return the packs' texts by language, in the form of ComfyUI's `/i18n`."""
    # The editor takes the title of an opened template's tab from here.
    titles = {"templateWorkflows": {"template": {one.name: one.title for one in shipped().values()}}}
    merged: dict[str, dict[str, object]] = {"en": {**titles, **_validation_text("{nodeName}: {rawDetails}")}}
    merged["zh"] = _validation_text("{nodeName}：{rawDetails}")
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


def _validation_text(text: str) -> dict[str, object]:
    """Replace the editor's message for a value that a node's own check rejects: the original omits the reason."""
    return {"errorCatalog": {"validationErrors": {"custom_validation_failed": {"toastMessage": text}}}}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = loads(path.read_bytes().removeprefix(BOM_UTF8), allow_duplicates=True) if path.is_file() else {}
    except (OSError, BadJson):
        return {}  # without a readable translation, a pack's nodes stay in English
    return data if isinstance(data, dict) else {}


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, object]:
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
