"""Parts that are streamed block by block, and what happens when memory runs out; without a GPU, from the CPU to the CPU."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from uniworld.nodes import host
from uniworld.nodes.headless.chat.session import open_model
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.loading import memory as memory_module
from uniworld.uniworld_core.loading import offload
from uniworld.uniworld_core.loading.memory import ModelMemory
from uniworld.uniworld_core.loading.module_size import module_bytes
from uniworld.uniworld_core.loading.offload import choose_offload, stream_blocks, streamable, working_bytes

pytest.importorskip("accelerate", reason="diffusers streams blocks with accelerate")
CPU, FLOAT32 = torch.device("cpu"), torch.float32
PICTURE = Image.new("RGB", (60, 40), (30, 40, 220))


def can_stream() -> bool:
    try:
        stream_blocks(UniWorld.from_pretrained("tiny", dtype=FLOAT32).dit, CPU)
    except UniWorldError:
        return False
    return True


streaming = pytest.mark.skipif(not can_stream(), reason="this diffusers streams blocks only on machines with a GPU")


def outputs(model: UniWorld) -> list[Any]:
    refs = model.reference([PICTURE])
    condition = model.encode("A blue square.", refs=refs, t5_length=8)
    z = model.sample(condition, 32, 48, steps=2)
    answer = model.understand("What is it?", refs=refs, max_new_tokens=4)
    return [condition.tokens, condition.pooled, z, model.decode(z), model.route("Paint.", refs=refs).logits, answer]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@streaming
@pytest.mark.parametrize("setting", ["blocks", "disk"])
@pytest.mark.parametrize("storage", ["auto", "int8"])
def test_streamed_parts_compute_the_same(setting: str, storage: str) -> None:
    expected = outputs(UniWorld.from_pretrained("tiny", dtype=FLOAT32, storage=storage))
    model = UniWorld.from_pretrained("tiny", dtype=FLOAT32, storage=storage, offload=setting)
    assert_same(outputs(model), expected)
    assert_same(outputs(model), expected)
    assert model.dit.streamed
    assert model.vlm.streamed
    assert model.text.t5.streamed
    assert not model.vae.streamed


@streaming
def test_a_part_that_does_not_fit_is_streamed_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs(UniWorld.from_pretrained("tiny", dtype=FLOAT32))
    model = UniWorld.from_pretrained("tiny", dtype=FLOAT32, offload="blocks")
    said: list[str] = []
    # As on a GPU with little memory, where `auto` decides.
    monkeypatch.setattr(memory_module, "_has_own_memory", lambda device: True)
    placed = model._placed
    placed._memory, placed._offload = ModelMemory(1_500_000, said.append), "auto"
    assert_same(outputs(model), expected)
    assert any(
        sentence.startswith("dit (") and "streamed block by block from system RAM" in sentence for sentence in said
    )
    assert model.dit.streamed


def hooked(module: nn.Module) -> set[str]:
    """Names of the modules that move weights when they run."""
    return {name for name, part in module.named_modules() if hasattr(part, "_diffusers_hook")}


@streaming
def test_hooks_are_on_the_modules_that_are_called() -> None:
    model = UniWorld.from_pretrained("tiny", dtype=FLOAT32)
    fired: list[nn.Module] = []
    for part in (model.dit, model.vlm, model.text.t5):
        full = module_bytes(part)
        assert stream_blocks(part, CPU) < full
        assert hooked(part)
        for network in streamable(part):
            network.register_forward_hook(lambda network, *_: fired.append(network))
    outputs(model)
    assert set(fired) == {network for part in (model.dit, model.vlm, model.text.t5) for network in streamable(part)}


@streaming
def test_a_streamed_part_keeps_its_token_table_where_it_is() -> None:
    model = UniWorld.from_pretrained("tiny", dtype=FLOAT32)
    table = model.vlm.qwen.model.language_model.embed_tokens
    stream_blocks(model.vlm, CPU)
    assert model.vlm.qwen.model.language_model.embed_tokens is table
    # Looked up where the table is, and given where the ids are.
    ids = torch.tensor([[1, 2]])
    assert table(ids).device == ids.device
    assert {"qwen.model.language_model", "qwen.model.visual"} <= hooked(model.vlm)


@pytest.mark.parametrize(
    ("setting", "need", "room", "can_stream", "expected"),
    [
        ("auto", 10, None, True, "none"),
        ("auto", 10, 10, True, "none"),
        ("auto", 11, 10, True, "blocks"),
        ("auto", 11, 10, False, "none"),
        ("none", 11, 10, True, "none"),
        ("blocks", 1, 10, True, "blocks"),
        ("blocks", 1, 10, False, "none"),
        ("disk", 1, 10, True, "disk"),
    ],
)
def test_offload_is_decided_per_part(
    setting: str, need: int, room: int | None, can_stream: bool, expected: str
) -> None:
    assert choose_offload(setting, need, room, can_stream) == expected


class Elsewhere(nn.Linear):
    """A layer that says it is on another device than the CPU, and counts how often it is moved to system RAM."""

    moves = 0

    def to(self, *args: Any, **_: Any) -> Any:
        self.moves += args[0] == "cpu"
        return self


@pytest.mark.parametrize(("free", "dropped"), [(10**12, False), (10, True)])
def test_parts_leave_ram_when_it_is_short(free: int, dropped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "available_ram", lambda: free)
    monkeypatch.setattr(memory_module, "_empty_device_caches", lambda: None)
    memory, gpu, reads = ModelMemory(3000), torch.device("meta"), []

    def read() -> Elsewhere:
        reads.append(1)
        return Elsewhere(16, 32)

    module = Elsewhere(16, 32)
    gone = weakref.ref(module)
    first, second = memory.manage(module, gpu, read), memory.manage(Elsewhere(16, 32), gpu, read)
    del module
    first.on_device()
    second.on_device()
    assert not first.resident
    gc.collect()
    assert (gone() is None) == dropped
    first.on_device()
    assert len(reads) == dropped


def test_every_part_announces_its_working_memory() -> None:
    model = UniWorld.from_pretrained("tiny", dtype=FLOAT32)
    assert all(working_bytes(part) > 0 for part in (model.understanding, model.text.clip, model.text.t5, model.siglip))
    managed = ModelMemory(10**9).manage(model.siglip, CPU)
    assert managed.working_bytes == working_bytes(model.siglip)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@streaming
def test_out_of_memory_names_the_next_smaller_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**options: Any) -> str:
        model = UniWorld.from_pretrained("tiny", dtype=FLOAT32, **options)
        condition = model.encode("A blue square.", use_t5=False)
        monkeypatch.setattr(model.dit, "packed_velocity", out_of_memory)
        with pytest.raises(UniWorldError, match=r"cpu ran out of memory in DiT") as error:
            model.sample(condition, 32, 32, steps=1)
        monkeypatch.undo()
        assert isinstance(error.value, torch.OutOfMemoryError)  # by which ComfyUI knows it
        return str(error.value)

    assert "choose storage=int8, offload=blocks or a smaller picture" in said()
    assert "choose storage=nf4, offload=blocks or a smaller picture" in said(storage="int8")
    assert "choose storage=nf4 or a smaller picture" in said(storage="int8", offload="blocks")


def test_the_vae_decodes_in_tiles_after_running_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = UniWorld.from_pretrained("tiny", dtype=FLOAT32).vae
    z = torch.randn(1, 16, 80, 72, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(z)
    decoder, sizes = vae.autoencoder.decoder, []
    forward = type(decoder).forward

    def only_small(self: Any, sample: torch.Tensor, *args: Any) -> torch.Tensor:
        sizes.append(tuple(sample.shape[-2:]))
        return out_of_memory() if sample.shape[-1] > 64 or sample.shape[-2] > 64 else forward(self, sample, *args)

    monkeypatch.setattr(type(decoder), "forward", only_small)
    found = vae.decode(z)
    assert sizes[0] == (80, 72)
    assert max(max(size) for size in sizes[1:]) == 64
    assert found.shape == expected.shape
    assert float((found - expected).abs().mean()) < 0.1
    assert not vae.autoencoder.use_tiling  # the next picture is computed at once
    monkeypatch.setattr(type(decoder), "forward", out_of_memory)
    with pytest.raises(UniWorldError, match="ran out of memory in VAE: choose device=cpu"):
        vae.decode(z)


def test_an_unknown_offload_is_refused() -> None:
    with pytest.raises(UniWorldError, match=r"offload is 'gpu'; it must be one of auto, none, blocks, disk"):
        UniWorld.from_pretrained("tiny", offload="gpu")


@streaming
def test_nodes_stream_parts() -> None:
    host.install(host.PlainHost())
    try:
        model = open_model("tiny", "tiny", "tiny", "float32", "cpu", "auto", "blocks")
        assert model["dit"].on_device().streamed
        assert open_model("tiny", "tiny", "tiny", "float32", "cpu")["dit"].on_device().streamed is False
    finally:
        host.install(None)
