"""Outputs in ComfyUI's own types that are made when a node first uses them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ....uniworld_core.errors import UniWorldError


class Lazy:
    """Stands for an object that is made when an attribute of it is first read or set.

    Load UniWorld gives MODEL and VAE whether or not they are linked, and a DiT takes a minute and 24 GB to read. ComfyUI
    has no way to make an output on demand: whether it is linked is not part of what the cache knows a node by.

    Args:
        kind: class of the object, for `isinstance`.
        make: makes it. Its errors are raised where it is first used, and again at the next use.
    """

    def __init__(self, kind: type, make: Callable[[], Any]) -> None:
        set_own = super().__setattr__
        set_own("_lazy_kind", kind)
        set_own("_lazy_make", make)
        set_own("_lazy_lock", threading.Lock())
        set_own("_lazy_made", None)

    def _lazy_get(self) -> Any:
        with self._lazy_lock:
            if self._lazy_made is None:
                super().__setattr__("_lazy_made", self._lazy_make())
        return self._lazy_made

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._lazy_kind

    def __getattr__(self, name: str) -> Any:
        # Special names are asked for by whatever looks at an object, such as caches and copiers, and are no use of it.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._lazy_get(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._lazy_get(), name, value)


def needs_comfyui(what: str) -> Any:
    """An output that this host cannot make. Raises UniWorldError where a node uses it."""

    def make() -> Any:
        raise UniWorldError(
            f"{what} needs ComfyUI, whose nodes use it: run the workflow there, or with --server URL, or link UniWorld's "
            "own outputs and nodes."
        )

    return Lazy(object, make)
