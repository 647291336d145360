"""Outputs of ComfyUI's types: made on first use, and refused by a host that is not ComfyUI."""

from __future__ import annotations

import pytest
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.nodes.pack.native.lazy import Lazy, needs_comfyui
from uniworld.uniworld_core.errors import UniWorldError


class Thing:
    def __init__(self) -> None:
        self.size = 3


def test_it_is_made_once_and_stands_for_the_object() -> None:
    made = []
    lazy = Lazy(Thing, lambda: made.append(1) or Thing())
    assert isinstance(lazy, Thing)
    assert not hasattr(lazy, "__deepcopy__")
    assert made == []
    assert lazy.size == 3
    lazy.size = 4
    assert lazy.size == 4
    assert made == [1]
    assert not hasattr(lazy, "nothing")


def test_an_error_of_the_making_is_raised_at_each_use() -> None:
    lazy = needs_comfyui("MODEL of Load UniWorld")
    for _ in range(2):
        with pytest.raises(UniWorldError, match="MODEL of Load UniWorld only works inside ComfyUI"):
            lazy.clone()


def test_load_uniworld_gives_them_and_only_their_use_fails_without_comfyui() -> None:
    host.install(host.PlainHost())
    try:
        loader = NODE_CLASS_MAPPINGS["UniWorldLoader"]
        given = dict(
            zip(
                loader.RETURN_NAMES,
                loader().execute(checkpoint="tiny", flux="auto", siglip="auto", dtype="float32", device="cpu"),
            )
        )
    finally:
        host.install(None)
    with pytest.raises(UniWorldError, match="MODEL"):
        given["MODEL"].clone()
    with pytest.raises(UniWorldError, match="VAE"):
        given["VAE"].decode(None)
