"""Outputs in ComfyUI's own types that are made when a node first uses them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ....uniworld_core.errors import UniWorldError


class Lazy:
    """Proxy of an object that is created when one of its attributes is first read or set.

    Load UniWorld returns MODEL and VAE whether or not they are linked, and reading a DiT takes a minute and 24 GB. ComfyUI
    cannot create an output on demand, because its cache keys do not include whether an output is linked.

    Args:
        kind: class of the object, for `isinstance`.
        make: creates the object. Its errors are raised at every use until it succeeds.
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
        # Caches and copiers look up special names on every object. That must not create this one.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._lazy_get(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._lazy_get(), name, value)


def needs_comfyui(what: str) -> Any:
    """Return a placeholder for an output that only ComfyUI can create. It raises UniWorldError when a node uses it."""

    def make() -> Any:
        raise UniWorldError(
            f"{what} only works inside ComfyUI: run the workflow there or with --server URL, or use UniWorld's own outputs "
            "and nodes."
        )

    return Lazy(object, make)
