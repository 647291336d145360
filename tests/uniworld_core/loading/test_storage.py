"""Weights that are held in another dtype than the arithmetic's paint and read the same, in the library and through nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from uniworld.nodes import NODE_CLASS_MAPPINGS, host
from uniworld.nodes.pack import parts as node_parts
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.images.pictures import to_image
from uniworld.uniworld_core.loading.meta import place
from uniworld.uniworld_core.loading.storage import FloatStorage, Precision, Storage, choose_storage, set_compute

ROOT = Path(__file__).parents[3]
PROMPT = "Replace the blue square with a green triangle."
PICTURE = Image.new("RGB", (60, 40), (30, 40, 220))
PARTS = ("vlm", "projectors", "dit", "vae", "clip", "t5", "siglip")


class HeldLinear(nn.Linear):
    """A linear layer whose weight takes the dtype of its input when it is used, with a factor for each row or none."""

    factor: torch.Tensor | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.factor is None:
            return F.linear(input, self.weight.to(input.dtype), self.bias)
        out = F.linear(input, self.weight.to(input.dtype)) * self.factor
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True)
class CastAtUse:
    """Weights of linear layers in `held`, all else in `compute`."""

    held: torch.dtype
    compute: torch.dtype = torch.float32

    def for_part(self, file_bytes: int, device: torch.device | str) -> CastAtUse:
        return self

    def put(
        self, network: nn.Module, name: str, tensor: torch.Tensor, device: torch.device | str, precision: Precision
    ) -> None:
        path, _, leaf = name.rpartition(".")
        layer = network.get_submodule(path)
        if leaf == "weight" and type(layer) is nn.Linear and precision is not Precision.COMPUTE:
            layer.__class__ = HeldLinear
            layer.register_buffer("factor", None)
            self.put_weight(layer, tensor.to(device))
        else:
            place(network, name, tensor.to(device=device, dtype=self.compute, copy=True))

    def put_weight(self, layer: HeldLinear, weight: torch.Tensor) -> None:
        place(layer, "weight", weight.to(self.held, copy=True))


class RowInt8(CastAtUse):
    """Weights as int8 with a scale for each row, which no file has."""

    def put_weight(self, layer: HeldLinear, weight: torch.Tensor) -> None:
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        place(layer, "weight", (weight / scale).round().to(torch.int8))
        layer.factor = scale[:, 0].to(self.compute)


class Mapped(CastAtUse):
    """Weights as the mapped tensors of the files."""

    def put_weight(self, layer: HeldLinear, weight: torch.Tensor) -> None:
        place(layer, "weight", weight)


@pytest.fixture(scope="module")
def plain() -> UniWorld:
    return UniWorld.from_pretrained("tiny", dtype=torch.float32)


# How far what is made with each may be from what is made in float32. bfloat16 keeps 8 bits of a weight, int8 with a
# scale about as many of most, and float8_e4m3 4, of small ones fewer.
BOUNDS: dict[CastAtUse, float] = {
    Mapped(torch.float32): 0.0,
    CastAtUse(torch.bfloat16): 0.02,
    RowInt8(torch.int8): 0.05,
    CastAtUse(torch.float8_e4m3fn): 0.2,
}


@pytest.fixture(scope="module", params=BOUNDS, ids=["mapped", "bfloat16", "int8", "float8"])
def storage(request: pytest.FixtureRequest) -> CastAtUse:
    assert isinstance(request.param, Storage)
    return request.param


@pytest.fixture(scope="module")
def cast(storage: CastAtUse) -> UniWorld:
    return UniWorld.from_pretrained("tiny", storage=storage)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The difference, of the expected tensor's own spread."""
    assert torch.isfinite(found).all()
    return float((found - expected).pow(2).mean().sqrt() / expected.std())


def test_every_part_holds_its_linear_weights_so_and_computes_in_float32(cast: UniWorld, storage: CastAtUse) -> None:
    assert cast.dtype == torch.float32
    for name in PARTS:
        module = cast.part(name)
        held = [layer for layer in module.modules() if isinstance(layer, HeldLinear)]
        assert held, name
        assert {layer.weight.dtype for layer in held} == {storage.held}
        assert {p.dtype for p in module.parameters()} == {storage.held, torch.float32}
        assert getattr(module, "dtype", torch.float32) == torch.float32
    # T5's own code converts activations to the dtype of this layer.
    outputs = [layer for name, layer in cast.text.t5.named_modules() if name.endswith(".wo")]
    assert outputs
    assert not any(isinstance(layer, HeldLinear) for layer in outputs)


def test_library_reads_and_paints_nearly_the_same(plain: UniWorld, cast: UniWorld, storage: CastAtUse) -> None:
    found: list[Any] = []
    for model in (plain, cast):
        refs = model.reference([PICTURE])
        condition = model.encode(PROMPT, refs=refs, t5_length=8)
        assert condition.tokens.dtype == condition.pooled.dtype == torch.float32
        z = model.sample(condition, 32, 48, steps=2)
        logits = model.route(PROMPT, refs=refs).logits
        found.append([refs[0].features, condition.tokens, condition.pooled, z, model.decode(z), logits])
        assert isinstance(model.understand(PROMPT, refs=refs, max_new_tokens=3), str)
    expected, held = found
    for a, b in zip(held, expected, strict=True):
        assert distance(a, b) <= BOUNDS[storage]
        assert torch.equal(a, b) == (BOUNDS[storage] == 0)


@pytest.fixture
def plain_host() -> Iterator[None]:
    host.install(host.PlainHost())
    yield
    host.install(None)


@pytest.mark.usefixtures("plain_host")
def test_nodes_paint_what_the_library_paints(
    cast: UniWorld, storage: CastAtUse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(node: str, **inputs: Any) -> Any:
        made = NODE_CLASS_MAPPINGS[node]()
        return getattr(made, made.FUNCTION)(**inputs)

    monkeypatch.setattr(node_parts, "storage_of", lambda *_: storage)
    vlm, siglip, dit, vae, text, *_ = run(
        "UniWorldLoader", checkpoint="tiny", flux="tiny", siglip="tiny", dtype="auto", device="cpu"
    )
    (references,) = run("UniWorldReference", image=to_image([PICTURE]), siglip=siglip)
    conditioning, *_ = run(
        "UniWorldCondition", vlm=vlm, prompt=PROMPT, references=references, text=text, t5_length=8, guidance=3.5
    )
    (painted,) = run(
        "UniWorldSampler",
        dit=dit,
        conditioning=conditioning,
        latent={"samples": torch.zeros(1, 16, 4, 6)},
        seed=0,
        steps=2,
        guidance=3.5,
        denoise=1.0,
    )
    (image,) = run("UniWorldVAEDecode", vae=vae, latent=painted)
    assert any(isinstance(layer, HeldLinear) for layer in dit.on_device().modules())
    z = cast.sample(cast.encode(PROMPT, refs=cast.reference([PICTURE]), t5_length=8), 32, 48, steps=2)
    assert torch.equal(painted["samples"], z)
    assert torch.equal(image, cast.decode(z))


def test_dtype_and_device_follow_the_module_and_can_be_set_apart_from_its_weights() -> None:
    dit = UniWorld.from_pretrained("tiny", dtype=torch.float32).dit
    assert (dit.dtype, dit.device) == (torch.float32, torch.device("cpu"))
    dit.to(torch.bfloat16)
    assert dit.dtype == torch.bfloat16
    holder = nn.ModuleList([dit]).to("meta")
    assert dit.device == torch.device("meta")
    weight = dit.transformer.proj_out.weight
    set_compute(holder, torch.float16, "cpu")
    assert (dit.dtype, dit.device) == (torch.float16, torch.device("cpu"))
    assert dit.transformer.proj_out.weight is weight
    set_compute(holder)
    assert (dit.dtype, dit.device) == (torch.float16, torch.device("cpu"))


def test_a_dtype_without_arithmetic_of_its_own_is_refused_for_computing() -> None:
    assert choose_storage(torch.bfloat16, "cpu") == FloatStorage(torch.bfloat16)
    for chosen in (torch.float8_e4m3fn, FloatStorage(torch.float8_e4m3fn), CastAtUse(torch.bfloat16, torch.int8)):
        with pytest.raises(ValueError, match=r"dtype is .*torch\.bfloat16, torch\.float16 or torch\.float32"):
            choose_storage(chosen, "cpu")


def test_no_code_reads_off_weights_what_a_module_computes_in() -> None:
    pattern = re.compile(r"next\([^\n]*\bparameters\(\)|\b(weight|bias)\.(dtype|device)\b")
    sources = [file for room in ("uniworld_core", "nodes", "training") for file in (ROOT / room).rglob("*.py")]
    # Those that hold weights, place tensors beside them, or use a table that may be elsewhere, and nodes on ComfyUI's own
    # modules, which do not know what they compute in.
    holding = {ROOT / "uniworld_core" / "loading" / name for name in ("layers.py", "offload.py")}
    holding |= {ROOT / "training" / "editr1" / "adapters.py", ROOT / "uniworld_core" / "backbones" / "qwen2.py"}
    sources = [file for file in sources if file not in holding and "native" not in file.parts]
    found = {file.name: match[0] for file in sources if (match := pattern.search(file.read_text(encoding="utf-8")))}
    assert len(sources) > 100
    assert not found
