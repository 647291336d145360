"""Compiled blocks and implementations of attention: the same pictures, and clear errors where they do not work."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.loading import speed as speed_module
from uniworld.uniworld_core.loading.offload import stream_blocks
from uniworld.uniworld_core.loading.speed import Speed


def opened(storage: str = "auto", **settings: Any) -> UniWorld:
    return UniWorld.from_pretrained("tiny", dtype=torch.float32, storage=storage, **settings)


@pytest.fixture(scope="module")
def condition() -> Condition:
    return opened().encode("Paint a red square.", use_t5=False)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace blocks as for compiling, and run the traced graphs without the compiler, which takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    speed_module._compiling.clear()
    yield
    speed_module._compiling.clear()
    torch.compiler.reset()


@pytest.mark.parametrize(("storage", "streamed"), [("auto", False), ("int8", True), ("fp8", False)])
def test_compiled_blocks_paint_the_same(storage: str, streamed: bool, condition: Condition, traced: None) -> None:
    plain, model = opened(storage), opened(storage, compile="blocks", attention="native")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    if streamed:
        try:
            stream_blocks(model.dit, torch.device("cpu"))
        except UniWorldError as error:
            pytest.skip(f"{error}")
    for cache in ("off", "strong"):
        wanted, found = (one.sample(condition, 64, 64, steps=3, cache=cache) for one in (plain, model))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
    assert 0 < made <= 4, "one graph for each kind of block, not for each block, and none broken by hooks"


# In a process of its own: what other tests leave in torch's compiler must not decide whether it works.
COMPILED = """
import runpy, torch
runpy.run_path({conftest!r})
from uniworld.uniworld_core import UniWorld
plain, compiled = (UniWorld.from_pretrained("tiny", dtype=torch.float32, compile=one) for one in ("off", "blocks"))
condition = plain.encode("Paint a red square.", use_t5=False)
wanted, found = (one.sample(condition, 64, 64, steps=2) for one in (plain, compiled))
torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
"""


@pytest.mark.slow
def test_compiled_code_paints_the_same() -> None:
    program = COMPILED.format(conftest=str(Path(__file__).parents[2] / "conftest.py"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_attention_of_another_name_paints_the_same_and_leaves_other_models_alone(
    name: str, condition: Condition
) -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    wanted, model = opened().sample(condition, 64, 64, steps=2), opened(attention=name)
    torch.testing.assert_close(model.sample(condition, 64, 64, steps=2), wanted, rtol=0, atol=1e-4)
    set_to = {module.processor._attention_backend for module in model.dit.modules() if hasattr(module, "processor")}
    assert {one.value for one in set_to} == {name}
    assert _AttentionBackendRegistry.get_active_backend()[0].value == "native"


@pytest.mark.parametrize(("settings", "message"), [
    ({"compile": "on"}, r"compile is 'on'; it must be one of off, blocks"),
    ({"compile": True}, r"compile is True; it must be one of off, blocks"),
    ({"attention": "sage_hub"}, r"attention is 'sage_hub'; it must be one of auto, native"),
    ({"attention": None}, r"attention is None; it must be one of auto, native"),
    ({"attention": "_native_cudnn"}, r"attention '_native_cudnn' does not work in float32 on cpu here \(.+\): set attention to auto"),
    ({"attention": "sage"}, r"attention 'sage' does not work in float32 on cpu here \(.+\): set attention to auto"),
])  # fmt: skip
def test_what_does_not_work_here_is_reported_before_files_are_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UniWorldError, match=message):
        UniWorld.from_pretrained("no such folder", dtype=torch.float32, **settings)


def test_a_machine_without_a_compiler_is_reported_before_files_are_read() -> None:
    config = importlib.import_module("torch._inductor.config")
    speed_module._compiling.clear()
    # torch's own patch: monkeypatch deletes settings of torch's modules when it restores them, for the whole process.
    with (
        config.patch({"cpp.cxx": ("/nonexistent/g++",), "force_disable_caches": True}),
        pytest.raises(
            UniWorldError, match=r"compile does not work on cpu here \(.*C\+\+.*\): install a C\+\+ compiler, or set"
        ),
    ):
        UniWorld.from_pretrained("no such folder", compile="blocks")
    assert not speed_module._compiling


def test_an_error_of_a_run_names_the_settings(condition: Condition, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_masks(*_: Any, **__: Any) -> None:
        raise ValueError("`attn_mask` is not supported.\nMore about it.")

    def velocity(speed: Speed, forward: Any = None) -> torch.Tensor:
        dit = opened().dit
        if forward is not None:
            dit.transformer.forward = forward
        return speed.applied(dit).velocity_for(condition, 3.5, (1, 16, 8, 8))(torch.zeros(1, 16, 8, 8), 1.0)

    with pytest.raises(
        UniWorldError, match=r"failed with attention=native \(ValueError: `attn_mask` is not supported\): set"
    ):
        velocity(Speed(attention="native"), no_masks)
    with pytest.raises(ValueError, match="More about it"):
        velocity(Speed(), no_masks)
    monkeypatch.setattr(torch, "compile", lambda function: lambda *_, **__: 1 / 0)
    with pytest.raises(UniWorldError, match=r"failed with compile=blocks \(ZeroDivisionError: .*set compile to off"):
        velocity(Speed("blocks"))


def test_networks_without_blocks_are_refused() -> None:
    network = torch.nn.Linear(2, 2)
    with pytest.raises(UniWorldError, match=r"compile is blocks, and Linear has no repeated blocks .*: set it to off"):
        Speed("blocks").check_network(network)
    with pytest.raises(
        UniWorldError, match=r"attention is native, and Linear has only one implementation: set it to auto"
    ):
        Speed(attention="native").check_network(network)
    Speed().check_network(network)
    with pytest.raises(UniWorldError, match=r"compile is blocks and attention is auto, which this model cannot use"):
        Speed("blocks").applied(object())
