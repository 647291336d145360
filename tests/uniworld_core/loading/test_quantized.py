"""Quantized weights: how near nano's pictures are to those of float32, and files in the forms in which people have them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from quantized_forms import (
    Form,
    copy_model,
    fp8_plain,
    fp8_rows,
    fp8_scaled,
    int8,
    nf4,
    nf4_nested,
    quantized_copy,
    rewrite,
)
from safetensors.torch import load_file, save_file
from torch import nn
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.flux_text import t5_part
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.loading import quantized, storage
from uniworld.uniworld_core.loading.layers import CastEmbedding, CastLinear, NF4Linear, ScaledLinear, set_linear_weight
from uniworld.uniworld_core.loading.options import STORAGES
from uniworld.uniworld_core.loading.quantized import NF4Tensor, ScaledTensor, quantize_int8
from uniworld.uniworld_core.loading.shipped import ShippedModel
from uniworld.uniworld_core.loading.storage import named_storage
from uniworld.uniworld_core.loading.weights import Shards

ROOT = Path(__file__).resolve().parents[3]
FLOAT32 = torch.float32
PROMPTS = ("Make the red circle an orange square.", "Make the green triangle yellow.")
# Decibels that nano's edits keep of those in float32, and the class of its quantized layers.
LEVELS = {"bfloat16": 75.0, "int8": 55.0, "fp8": 45.0, "nf4": 33.0}
LAYERS = {"bfloat16": nn.Linear, "int8": ScaledLinear, "fp8": ScaledLinear, "nf4": NF4Linear}


def edits(model: UniWorld) -> torch.Tensor:
    """Two of nano's edits of the sample picture, (2, 128, 128, 3)."""
    references = model.reference([Image.open(ROOT / "workflows" / "input" / "shapes.png").convert("RGB")])
    condition = model.encode(list(PROMPTS), refs=[references, references], use_t5=False)
    return model.decode(model.sample(condition, 128, 128, steps=8, seed=[0, 1]))


def decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of pictures in 0..1."""
    return float(-10 * torch.log10((found - expected).pow(2).mean().clamp(min=1e-12)))


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    return edits(UniWorld.from_pretrained("nano", dtype=FLOAT32))


def needs(name: str) -> None:
    if name == "nf4":
        pytest.importorskip("bitsandbytes", reason="the extra nf4 is not installed")


@pytest.mark.parametrize("name", LEVELS)
def test_edits_in_each_storage_are_as_near_to_float32_as_promised(name: str, exact: torch.Tensor) -> None:
    needs(name)
    model = UniWorld.from_pretrained("nano", dtype=FLOAT32, storage=name)
    for picture, expected in zip(edits(model), exact):
        assert decibels(picture, expected) >= LEVELS[name]
    assert not torch.equal(edits(model), exact)
    blocks = [layer for layer in model.dit.transformer.transformer_blocks.modules() if isinstance(layer, nn.Linear)]
    assert {type(layer) for layer in blocks} == ({CastLinear} if name == "bfloat16" else {LAYERS[name]})
    # Small and sensitive layers, and other parts, are not quantized.
    plain = [model.dit.transformer.proj_out, model.vlm.qwen.lm_head, model.vlm.qwen.model.visual.blocks[0].mlp.up_proj]
    plain += [layer for layer in model.siglip.modules() if isinstance(layer, nn.Linear)]
    assert all(layer.weight.dtype in (torch.bfloat16, FLOAT32) for layer in plain)


def weight_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def test_each_storage_takes_less_memory() -> None:
    def size(name: str) -> int:
        return weight_bytes(UniWorld.from_pretrained("nano", dtype=FLOAT32, storage=name).dit)

    full = size("auto")
    assert size("bfloat16") < 0.52 * full
    assert size("int8") < 0.32 * full
    assert size("fp8") < 0.32 * full
    needs("nf4")
    assert size("nf4") < 0.22 * full


# --- files ------------------------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[Form, bool, type[nn.Linear], float]] = {
    "int8": (int8, False, ScaledLinear, 55.0),
    "fp8 with a scale per row": (fp8_rows, False, ScaledLinear, 45.0),
    "fp8 with a scale per tensor": (fp8_scaled, True, ScaledLinear, 40.0),
    "fp8 without scales": (fp8_plain, True, CastLinear, 40.0),
    "nf4 as published": (nf4, True, NF4Linear, 25.0),
    "nf4 with double quantization": (nf4_nested, True, NF4Linear, 25.0),
}


@pytest.mark.parametrize("kind", FORMS)
def test_quantized_checkpoints_open_as_they_are(kind: str, tmp_path: Path, exact: torch.Tensor) -> None:
    form, everything, layer, least = FORMS[kind]
    folders = quantized_copy("nano", tmp_path, form, everything)
    model = UniWorld.from_pretrained(folders.checkpoint, folders.flux, folders.siglip, dtype=FLOAT32)
    assert type(model.dit.transformer.transformer_blocks[0].attn.to_q) is layer
    assert type(model.vlm.qwen.model.language_model.layers[0].mlp.up_proj) is layer
    found = edits(model)
    assert min(map(decibels, found, exact)) >= least
    assert isinstance(model.understand("What is this?", max_new_tokens=2), str)
    # The same numbers as floats.
    plain = UniWorld.from_pretrained(folders.checkpoint, folders.flux, folders.siglip, FLOAT32, storage="bfloat16")
    assert not [part for part in plain.dit.modules() if isinstance(part, (ScaledLinear, NF4Linear))]
    assert min(map(decibels, edits(plain), found)) >= 60


def test_nf4_files_have_the_names_and_the_values_of_bitsandbytes(tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="the extra nf4 is not installed")
    folders = quantized_copy("nano", tmp_path, nf4, everything=True)
    shards = Shards(folders.checkpoint)
    name = "denoise_tower.denoiser.transformer_blocks.0.attn.to_q.weight"
    stored = {key: value for file in folders.checkpoint.glob("*.safetensors") for key, value in load_file(file).items()}
    assert stored[name].shape == (stored[name].numel(), 1)
    assert f"{name}.quant_state.bitsandbytes__nf4" in stored
    assert f"{name}.absmax" not in shards.shapes
    ours = dict(shards.read([name]))[name]
    assert isinstance(ours, NF4Tensor)
    assert ours.shape == shards.shapes[name] == (192, 192)
    parts = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
    layer = bnb.nn.Linear4bit(192, 192, bias=False, compute_dtype=FLOAT32, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit.from_prequantized(stored[name], parts, device="cpu", module=layer)
    mine = nn.Linear(192, 192, bias=False)
    set_linear_weight(mine, ours, FLOAT32)
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mine(x), layer(x))


@pytest.mark.parametrize("form", [nf4, nf4_nested])
def test_t5_of_a_4_bit_flux_folder_opens(form: Form, tmp_path: Path) -> None:
    """`text_encoder_2` of FLUX.1-dev-bnb-4bit: every linear layer but `wo`."""
    needs("nf4")
    folders = copy_model("tiny", tmp_path)
    before = t5_part(folders.flux).load(FLOAT32).tokens(["A red circle."], 8)

    def wanted(name: str, tensor: torch.Tensor) -> bool:
        # bitsandbytes leaves out what transformers keeps in float32, and tables.
        return tensor.ndim == 2 and not name.endswith((".wo.weight", "shared.weight", "tokens.weight", "bias.weight"))

    rewrite(folders.flux / "text_encoder_2", form, wanted)
    t5 = t5_part(folders.flux).load(named_storage("auto", FLOAT32, "cpu"))
    tokens = t5.tokens(["A red circle."], 8)
    assert tokens.dtype == FLOAT32
    assert not torch.equal(tokens, before)
    floats = t5_part(folders.flux).load(FLOAT32)
    torch.testing.assert_close(tokens, floats.tokens(["A red circle."], 8), atol=1e-4, rtol=1e-4)
    assert not any(isinstance(layer, NF4Linear) for layer in floats.modules())
    assert any(isinstance(layer, NF4Linear) for layer in t5.modules())


def test_t5_keeps_wo_as_floats_in_every_storage(tmp_path: Path) -> None:
    folders = copy_model("tiny", tmp_path)
    rewrite(folders.flux / "text_encoder_2", fp8_plain, lambda name, tensor: tensor.ndim == 2)
    for name in ("auto", "int8", "fp8"):
        t5 = t5_part(folders.flux).load(named_storage(name, FLOAT32, "cpu"))
        outputs = [layer for path, layer in t5.named_modules() if path.endswith(".wo")]
        assert {(type(layer), layer.weight.dtype) for layer in outputs} == {(nn.Linear, FLOAT32)}
        assert torch.isfinite(t5.tokens(["A red circle."], 8)).all()


def test_weights_and_scales_may_be_in_two_files(tmp_path: Path) -> None:
    folders = quantized_copy("tiny", tmp_path, int8)
    expected = UniWorld.from_pretrained(folders.checkpoint, dtype=FLOAT32).dit.state_dict()
    tensors = {k: v for file in folders.checkpoint.glob("*.safetensors") for k, v in load_file(file).items()}
    for file in folders.checkpoint.glob("*.safetensors*"):
        file.unlink()
    scales = {name: tensors.pop(name) for name in [*tensors] if name.endswith("_scale")}
    save_file(tensors, folders.checkpoint / "a.safetensors")
    save_file(scales, folders.checkpoint / "b.safetensors")
    index = {**dict.fromkeys(tensors, "a.safetensors"), **dict.fromkeys(scales, "b.safetensors")}
    text = str({"metadata": {}, "weight_map": index}).replace("'", '"')
    (folders.checkpoint / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    found = UniWorld.from_pretrained(folders.checkpoint, dtype=FLOAT32).dit
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    layers = [layer for layer in found.modules() if isinstance(layer, ScaledLinear)]
    assert all(layer.weight_scale.shape == (layer.out_features, 1) for layer in layers)


def test_large_parts_on_a_cpu_are_mapped_and_keep_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = UniWorld.from_pretrained("nano", dtype=FLOAT32)
    assert copied.vlm.dtype == copied.dit.dtype == FLOAT32  # loaded now
    monkeypatch.setattr(storage, "MAPPED_BYTES", 0)
    mapped = UniWorld.from_pretrained("nano", dtype=FLOAT32)
    assert any(isinstance(layer, CastLinear) for layer in mapped.dit.modules())
    assert isinstance(mapped.vlm.qwen.model.language_model.embed_tokens, CastEmbedding)
    assert weight_bytes(mapped.vlm) < 0.6 * weight_bytes(copied.vlm)
    assert torch.equal(edits(mapped), edits(copied))
    assert mapped.understand("What is this?", max_new_tokens=4) == copied.understand("What is this?", max_new_tokens=4)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16, torch.float16])
def test_a_scaled_layer_computes_in_its_inputs_dtype(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 8, generator=generator) * 300, torch.randn(6, generator=generator)
    layer = nn.Linear(8, 6)
    layer.bias = nn.Parameter(bias.to(dtype))
    set_linear_weight(layer, quantize_int8(weight), dtype)
    x = torch.randn(3, 8, generator=generator).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), x.float() @ weight.T + bias, atol=30, rtol=0.05)
    assert layer.weight.dtype == torch.int8  # and not what `forward` made of it
    assert torch.equal(layer(x), out)


@pytest.mark.slow
def test_layers_compile_without_a_graph_break() -> None:
    x = torch.randn(4, 64)
    kinds: list[Any] = [quantize_int8(torch.randn(64, 64)), torch.randn(64, 64).to(torch.bfloat16)]
    kinds.append(quantized.quantize_fp8(torch.randn(64, 64)))
    for weight in kinds:
        layer = nn.Linear(64, 64)
        set_linear_weight(layer, weight, FLOAT32)
        layer.requires_grad_(False)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))


def test_int8_of_a_row_of_zeros_is_zero() -> None:
    weight = torch.stack([torch.zeros(4), torch.ones(4)])
    assert torch.equal(quantize_int8(weight).dequantize(FLOAT32), weight)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_unknown_storages_and_what_a_device_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UniWorldError, match=r"storage is 'int4'; it must be one of auto, bfloat16, int8, fp8, nf4"):
        UniWorld.from_pretrained("tiny", storage="int4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UniWorldError, match=r"bitsandbytes.*pip install 'uniworld\[nf4\]'"):
        UniWorld.from_pretrained("tiny", storage="nf4")
    for name in ("fp8", "nf4"):
        monkeypatch.setattr(storage, "bitsandbytes", lambda: None)
        with pytest.raises(UniWorldError, match=rf"storage '{name}' does not work on 'meta' devices: choose int8"):
            named_storage(name, FLOAT32, "meta")


def test_nf4_files_without_bitsandbytes_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = quantized_copy("tiny", tmp_path, nf4, everything=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UniWorldError, match=r"NF4 weights need bitsandbytes"):
        UniWorld.from_pretrained(folders.checkpoint, dtype=FLOAT32)


def first_quantized(folder: Path) -> tuple[Path, str]:
    shards = Shards(folder)
    name = next(iter(shards.encodings))
    return shards.files[name], name


BAD: dict[str, tuple[Form, str, Any, str]] = {
    "a missing scale": (int8, "{stem}.weight_scale", None, r"stored as I8 and its scale .*weight_scale is missing"),
    "a misshapen scale": (
        int8,
        "{stem}.weight_scale",
        torch.ones(3),
        r"has shape \[3\] and type F32, expected one float",
    ),
    "a scale of integers": (
        int8,
        "{stem}.weight_scale",
        torch.ones(1, dtype=torch.int32),
        r"type I32, expected one float",
    ),
    "scales of blocks": (fp8_plain, "{stem}.weight_scale_inv", torch.ones(1, 1), r"scale for each block of weights"),
    "no absmax": (nf4, "{name}.absmax", None, r"absmax is missing: copy the files again"),
    "a short absmax": (nf4, "{name}.absmax", torch.ones(2), r"absmax has 2 values, expected"),
    "an absmax of integers": (nf4, "{name}.absmax", torch.int64, r"absmax has type I64, expected F64 or F32"),
    "a nested absmax of floats": (nf4_nested, "{name}.absmax", FLOAT32, r"absmax has type F32, expected U8"),
    "another 4-bit format": (
        nf4,
        "{name}.quant_map",
        torch.linspace(-1, 1, 16),
        r"quant_map does not hold the 16 values",
    ),
    "a map that is not finite": (nf4, "{name}.quant_map", torch.full((16,), torch.nan), r"quant_map does not hold"),
    "one missing scale among others": (
        fp8_rows,
        "{stem}.weight_scale",
        None,
        r"{name} in \S+ is stored as float8 and has no scale, but \S+ has one",
    ),
    "a short weight": (nf4, "{name}", torch.ones(4, 1, dtype=torch.uint8), r"has 4 bytes, but a 4-bit weight of shape"),
    "a state that is not JSON": (
        nf4,
        "{name}.quant_state.bitsandbytes__nf4",
        torch.ones(9, dtype=torch.uint8),
        r"quant_state\.bitsandbytes__nf4",
    ),
    "a huge state": (
        nf4,
        "{name}.quant_state.bitsandbytes__nf4",
        torch.ones(10**4, dtype=torch.uint8),
        r"not a valid bitsandbytes state",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_quantized_files_are_refused_when_they_are_opened(case: str, tmp_path: Path) -> None:
    form, changed, tensor, message = BAD[case]
    folders = quantized_copy("tiny", tmp_path, form)
    file, name = first_quantized(folders.checkpoint)
    changed = changed.format(name=name, stem=name.removesuffix(".weight"))
    tensors = load_file(file)
    if tensor is None:
        del tensors[changed]
    elif isinstance(tensor, torch.dtype):
        tensors[changed] = tensors[changed].to(tensor)
    else:
        tensors[changed] = tensor
    save_file(tensors, file)
    with pytest.raises(UniWorldError, match=message.replace("{name}", re.escape(name))) as error:
        UniWorld.from_pretrained(folders.checkpoint, dtype=FLOAT32)
    assert str(folders.checkpoint) in str(error.value)


@pytest.mark.parametrize(
    ("form", "part", "value", "what"),
    [
        (int8, "{stem}.weight_scale", float("nan"), "NaN or infinite"),
        (nf4, "{name}.absmax", float("inf"), "NaN or infinite"),
        (int8, "{stem}.weight_scale", 0.0, "negative or 0"),
        (fp8_scaled, "{stem}.scale_weight", -1.0, "negative or 0"),
        (nf4, "{name}.absmax", -0.5, "negative"),
        (nf4_nested, "{name}.nested_absmax", -0.5, "negative"),
    ],
)
def test_a_scale_that_cannot_be_one_is_named_when_its_weight_is_read(
    form: Form, part: str, value: float, what: str, tmp_path: Path
) -> None:
    folders = quantized_copy("tiny", tmp_path, form)
    file, name = first_quantized(folders.checkpoint)
    part = part.format(name=name, stem=name.removesuffix(".weight"))
    tensors = load_file(file)
    tensors[part].view(-1)[0] = value
    save_file(tensors, file)
    with pytest.raises(UniWorldError, match=rf"1 of .* are {what}: copy or convert the files again") as error:
        list(Shards(folders.checkpoint).read([name]))
    assert f"{file}, " in str(error.value)
    assert part in str(error.value)


def test_a_block_of_zeros_has_an_absmax_of_0(tmp_path: Path) -> None:
    folders = quantized_copy("tiny", tmp_path, nf4)
    file, name = first_quantized(folders.checkpoint)
    shape = Shards(folders.checkpoint).shapes[name]
    save_file(load_file(file) | nf4(name, torch.zeros(shape)), file)
    ((_, tensor),) = Shards(folders.checkpoint).read([name])
    assert not isinstance(tensor, torch.Tensor)
    assert torch.equal(tensor.dequantize(FLOAT32), torch.zeros(shape))


@pytest.mark.parametrize("value", [None, 5, torch.bfloat16, ["int8"], True])
def test_a_storage_of_another_type_is_named(value: Any) -> None:
    with pytest.raises(
        UniWorldError, match=r"storage is .+; it must be a name, one of auto, bfloat16, int8, fp8, nf4, or"
    ):
        UniWorld.from_pretrained("no such folder", storage=value)


def test_a_quantized_weight_of_another_shape_does_not_fit(tmp_path: Path) -> None:
    folders = quantized_copy("tiny", tmp_path, nf4)
    file, name = first_quantized(folders.checkpoint)
    save_file(load_file(file) | nf4(name, torch.randn(64, 8)), file)
    with pytest.raises(UniWorldError, match=r"has shape \[64, 8\], expected \["):
        UniWorld.from_pretrained(folders.checkpoint, dtype=FLOAT32)


def test_declaring_storages_imports_no_torch() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import uniworld_core.loading.options as o; "
        "assert 'torch' not in sys.modules; print(*o.STORAGES)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(ROOT)], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == STORAGES


def test_quantized_tensors_are_of_their_own_shape(tmp_path: Path) -> None:
    folders: ShippedModel = quantized_copy("tiny", tmp_path, int8)
    _, name = first_quantized(folders.checkpoint)
    shards = Shards(folders.checkpoint)
    ((_, tensor),) = shards.read([name])
    assert isinstance(tensor, ScaledTensor)
    assert tensor.shape == shards.shapes[name]
    assert shards.nbytes(name) == tensor.values.nbytes + tensor.scale.nbytes
