"""The nodes that a workflow may use: the built-in ones, this package's own, and those of packs in other folders."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError
from .schema import object_info

_PACKAGE = __name__.removesuffix(".nodes.headless.registry.registry")


@dataclass
class Registry:
    """Node classes by the name that workflows use."""

    classes: dict[str, type] = field(default_factory=dict)
    display_names: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)

    def add(self, classes: Mapping[str, type], display_names: Mapping[str, str], module: str) -> None:
        """Add the mappings of a pack. It replaces nodes of the same name, as in ComfyUI."""
        self.classes.update(classes)
        self.display_names.update(display_names)
        self.modules.update(dict.fromkeys(classes, module))

    def is_own(self, name: str) -> bool:
        """Return whether a node class belongs to this package, not to another pack."""
        return self.classes[name].__module__.startswith(f"{_PACKAGE}.")

    def display_name(self, name: str) -> str:
        return self.display_names.get(name, name)

    def info(self, name: str) -> dict[str, object]:
        """Return the object_info entry of a node, in ComfyUI's form. Raises KeyError if the name is not registered."""
        return object_info(name, self.classes[name], self.display_name(name), self.modules.get(name, "nodes"))

    def infos(self) -> dict[str, dict[str, object]]:
        return {name: self.info(name) for name in self.classes}

    def suggestions(self, name: str) -> list[str]:
        """Return up to three registered names that are similar to an unknown one, comparing display names too."""
        by_label = {label.lower(): key for key, label in self.display_names.items() if key in self.classes}
        by_label.update({key.lower(): key for key in self.classes})
        near = difflib.get_close_matches(name.lower(), by_label, n=4, cutoff=0.6)
        return list(dict.fromkeys(by_label[label] for label in near))[:3]


def load_registry(packs: Iterable[Path] = ()) -> Registry:
    """Return a registry of the built-in nodes, this package's nodes, and those of the pack folders.

    Raises:
        UniWorldError: a pack folder is missing, is not a V1 pack, or fails to import.
    """
    from ..builtin.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    registry = Registry()
    registry.add(NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, "nodes")
    package = importlib.import_module("....", __package__)
    registry.add(package.NODE_CLASS_MAPPINGS, package.NODE_DISPLAY_NAME_MAPPINGS, "custom_nodes.uniworld")
    for folder in packs:
        pack = _import_pack(folder)
        display_names = getattr(pack, "NODE_DISPLAY_NAME_MAPPINGS", {})
        registry.add(pack.NODE_CLASS_MAPPINGS, display_names, f"custom_nodes.{folder.name}")
    return registry


def _import_pack(folder: Path) -> Any:
    entry = folder / "__init__.py"
    if not entry.is_file():
        raise UniWorldError(f"The node pack '{folder}' has no __init__.py. Pass the folder that ComfyUI would load.")
    # Packs are imported by path, under a name that no installed module has.
    name = f"uniworld_pack_{folder.resolve().name.replace('-', '_').replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, entry, submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise UniWorldError(f"The node pack '{folder}' cannot be imported. Pass the folder of a Python package.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UniWorldError(f"The node pack '{folder}' failed to import: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(module, "NODE_CLASS_MAPPINGS", None), dict):
        raise UniWorldError(f"The node pack '{folder}' defines no NODE_CLASS_MAPPINGS; only V1 packs can be loaded.")
    return module
