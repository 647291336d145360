"""LoRAs: all spellings of names, alpha from everywhere, and outputs that equal those of PEFT's own model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from uniworld.uniworld_core import Condition, UniWorld
from uniworld.uniworld_core.backbones.flux_bfl import bfl_tensors
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.lora.conversion import convert_lora
from uniworld.uniworld_core.lora.files import read_lora
from uniworld.uniworld_core.lora.layers import adapted
from uniworld.uniworld_core.lora.matching import layers_of, layers_of_painter, match
from uniworld.uniworld_core.lora.painter import LoraPainter, open_lora
from uniworld.uniworld_core.sampling.sampler import make_noise

SIZE = {"height": 48, "width": 64, "steps": 1}
ITEM, SIGMA, RANK = (16, 6, 8), 0.7, 4
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def condition(model: UniWorld) -> Condition:
    return model.encode("A red circle.", use_t5=False)


@pytest.fixture(scope="module")
def network(model: UniWorld) -> Any:
    return model.dit.transformer


@pytest.fixture(scope="module")
def modules(network: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{layer: A and B} of every kind of layer in the blocks, and of the last modulation."""
    generator = torch.Generator().manual_seed(3)
    names = [n for n, layer in network.named_modules() if isinstance(layer, nn.Linear) and "blocks." in n]

    def draw(layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        down = torch.randn(RANK, layer.in_features, generator=generator) / layer.in_features**0.5
        return down, torch.randn(layer.out_features, RANK, generator=generator) / 4

    return {name: draw(network.get_submodule(name)) for name in [*names, "norm_out.linear"]}


Velocity = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def velocity(model: UniWorld, condition: Condition) -> Velocity:
    noise = make_noise([1], ITEM)

    def of(painter: Any = None) -> torch.Tensor:
        with torch.inference_mode():
            return (painter or model.dit).velocity_for(condition, 3.5, noise.shape)(noise, SIGMA)

    return of


@pytest.fixture(scope="module")
def merged(network: Any, modules: Any, model: UniWorld, velocity: Velocity) -> Callable[[float], torch.Tensor]:
    """The velocity of a copy whose weights have the product in them."""

    def at(scale: float) -> torch.Tensor:
        painter = copy.deepcopy(model.dit)
        for name, (down, up) in modules.items():
            painter.transformer.get_submodule(name).weight.data += scale * up @ down
        return velocity(painter)

    return at


def written(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None, **metadata: str) -> Path:
    file = folder / ("adapter_model.safetensors" if config is not None else "lora.safetensors")
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file, metadata or None)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder
    return file


def named(
    modules: Any, prefix: str, down: str = ".lora_A.weight", up: str = ".lora_B.weight", flat: bool = False
) -> Tensors:
    tensors: Tensors = {}
    for name, (a, b) in modules.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {stem + down: a, stem + up: b}
    return tensors


def with_alpha(tensors: Tensors, alpha: float) -> Tensors:
    stems = {name.split(".lora_")[0] for name in tensors}
    return tensors | {f"{stem}.alpha": torch.tensor(alpha) for stem in stems}


def bfl(network: Any, modules: Any, flat: bool, rank_of_joined: int = 3 * RANK) -> Tensors:
    """The same modules under BFL's names, where q, k and v are one layer: block-diagonal B, and A's on top of each other."""
    shapes = network.state_dict()
    counts = len(network.transformer_blocks), len(network.single_transformer_blocks)
    tensors: Tensors = {}
    for name, joined in bfl_tensors(shapes, *counts).items():
        layers = [part.removesuffix(".weight") for part in joined.parts]
        if not name.endswith(".weight") or not set(layers) <= set(modules):
            continue
        down = torch.cat([modules[layer][0] for layer in layers])
        up = torch.block_diag(*(modules[layer][1] for layer in layers))
        stem = name.removesuffix(".weight")
        stem = f"lora_unet_{stem.replace('.', '_')}" if flat else f"diffusion_model.{stem}"
        up = torch.cat(up.chunk(2)[::-1]) if joined.swap_halves else up
        ends = (".lora_down.weight", ".lora_up.weight") if flat else (".lora_A.weight", ".lora_B.weight")
        tensors |= {stem + ends[0]: down, stem + ends[1]: up, f"{stem}.alpha": torch.tensor(float(len(down)))}
    return tensors


SPELLINGS: dict[str, Callable[[Any], Tensors]] = {
    "peft": lambda m: named(m, "base_model.model."),
    "peft with the adapter's name": lambda m: named(m, "", ".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers": lambda m: named(m, "transformer."),
    "peft of diffusers": lambda m: named(m, "base_model.model.transformer."),
    "comfyui": lambda m: named(m, "diffusion_model."),
    "bare": lambda m: named(m, ""),
    "early diffusers": lambda m: named(m, "unet.", ".lora.down.weight", ".lora.up.weight"),
    "kohya": lambda m: named(m, "lora_unet_", ".lora_down.weight", ".lora_up.weight", flat=True),
    "uniworld": lambda m: named(m, "denoise_tower.denoiser."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_of_every_kind_are_matched(spelling: str, modules: Any, network: Any, tmp_path: Path) -> None:
    lora = open_lora(written(tmp_path, SPELLINGS[spelling](modules)), layers_of(network))
    assert set(lora.products) == set(modules)
    for name, (down, up) in modules.items():
        assert torch.equal(lora.products[name].down, down)
        assert torch.equal(lora.products[name].up, up)


@pytest.mark.parametrize("flat", [False, True], ids=["bfl", "kohya"])
def test_joined_layers_of_flux_are_split(
    flat: bool, modules: Any, network: Any, model: UniWorld, velocity: Velocity, merged: Any, tmp_path: Path
) -> None:
    lora = open_lora(written(tmp_path, bfl(network, modules, flat)), layers_of(network))
    assert set(lora.products) == set(modules)
    torch.testing.assert_close(velocity(LoraPainter(model.dit, lora)), merged(1.0), rtol=1e-5, atol=1e-5)


def test_output_equals_that_of_peft(
    network: Any, modules: Any, model: UniWorld, velocity: Velocity, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    painter = copy.deepcopy(model.dit)
    targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "ff.net.2", "proj_mlp"]
    settings = {"alpha_pattern": {"attn.to_k": 24.0}, "rank_pattern": {"attn.to_v": 2}}
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=targets, **settings)
    painter.transformer = peft.get_peft_model(painter.transformer, config)
    painter.transformer.save_pretrained(tmp_path)
    theirs = velocity(painter)
    lora = open_lora(tmp_path, layers_of(network))
    assert {lora.file.scale(one) for one in lora.file.modules.values()} == {2.0, 6.0, 4.0}
    ours = velocity(LoraPainter(model.dit, lora))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert float((ours - velocity()).abs().max()) > 1e-2
    half = velocity(LoraPainter(model.dit, lora, 0.5))
    assert not torch.allclose(half, theirs, atol=1e-3)


def test_rank_stabilized_scale_equals_that_of_peft(
    network: Any, model: UniWorld, velocity: Velocity, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    painter = copy.deepcopy(model.dit)
    config = peft.LoraConfig(r=4, lora_alpha=4, use_rslora=True, init_lora_weights=False, target_modules=["attn.to_q"])
    painter.transformer = peft.get_peft_model(painter.transformer, config)
    painter.transformer.save_pretrained(tmp_path)
    lora = open_lora(tmp_path, layers_of(network))
    torch.testing.assert_close(velocity(LoraPainter(model.dit, lora)), velocity(painter), rtol=1e-5, atol=1e-5)


# --- alpha ------------------------------------------------------------------------------------------------------------


def scales(source: Path, alpha: float | None = None) -> set[float]:
    file = read_lora(source)
    return {file.scale(module, alpha) for module in file.modules.values()}


def test_alpha_is_from_the_argument_the_file_or_the_configuration(modules: Any, tmp_path: Path) -> None:
    plain = named(modules, "transformer.")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    assert scales(written(tmp_path, plain)) == {1.0}
    assert scales(written(tmp_path, plain), alpha=12.0) == {3.0}
    assert scales(written(tmp_path, with_alpha(plain, 2.0))) == {0.5}
    folder = written(tmp_path, plain, config)
    assert scales(folder) == scales(folder / "adapter_model.safetensors") == {2.0}
    assert scales(folder, alpha=RANK) == {1.0}
    assert scales(written(tmp_path, with_alpha(plain, 2.0), config)) == {0.5}
    stored = json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 20, "text_encoder.r": 1})
    assert scales(written(tmp_path, plain, lora_adapter_metadata=stored)) == {5.0}


def test_alpha_may_be_of_any_dtype_and_is_checked(modules: Any, tmp_path: Path) -> None:
    plain = named(dict(list(modules.items())[:1]), "transformer.")
    stem = next(iter(plain)).partition(".lora")[0]
    for value in (torch.tensor([8]), torch.tensor(8.0, dtype=torch.bfloat16), torch.tensor([[8.0]])):
        assert scales(written(tmp_path, plain | {f"{stem}.alpha": value})) == {2.0}
    for wrong in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"has .*\.alpha .*; it must be a finite number other than 0"):
            read_lora(written(tmp_path, plain | {f"{stem}.alpha": torch.tensor(wrong)}))


def test_configuration_beside_another_file_is_not_its_own(modules: Any, tmp_path: Path) -> None:
    written(tmp_path, named(modules, ""), {"r": RANK, "lora_alpha": 2 * RANK})
    assert scales(written(tmp_path, named(modules, ""))) == {1.0}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"r": 3}, "has rank 4, expected 3"),
        ({"r": "4"}, "has r '4'; it must be a whole number"),
        ({"lora_alpha": 0}, "has lora_alpha 0; it must be a finite number other than 0"),
        ({"lora_alpha": True}, "has lora_alpha True"),
        ({"lora_alpha": 10**400}, "has lora_alpha 10+.*; it must be a finite number other than 0"),
        ({"alpha_pattern": {"(a+)+": 1}}, r"the pattern '\(a\+\)\+'"),
        ({"alpha_pattern": {".*.*.*.*a": 1}}, r"the pattern '\.\*\.\*\.\*\.\*a'"),
        ({"alpha_pattern": {"attn": "x"}}, "has alpha_pattern of 'attn' 'x'"),
        ({"rank_pattern": [1]}, r"has rank_pattern \[1\]"),
        ({"use_rslora": "yes"}, "has use_rslora 'yes'"),
    ],
)
def test_configurations_of_other_kinds_are_errors(
    setting: dict[str, Any], message: str, modules: Any, tmp_path: Path
) -> None:
    folder = written(tmp_path, named(modules, ""), {"r": RANK, "lora_alpha": 8} | setting)
    with pytest.raises(ValueError, match=message):
        read_lora(folder)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_a_lora_of_another_model_is_an_error_that_names_modules(modules: Any, network: Any, tmp_path: Path) -> None:
    foreign = {f"other.{name}": pair for name, pair in list(modules.items())[:7]}
    with pytest.raises(ValueError, match=r"7 of 7 modules are not in FluxTransformer2DModel: .* and 2 more") as error:
        open_lora(written(tmp_path, named(foreign, "")), layers_of(network))
    assert len(error.value.problems) == 7


def test_a_lora_of_another_family_with_the_same_layers_is_an_error(
    model: UniWorld, modules: Any, tmp_path: Path
) -> None:
    file = written(tmp_path, named(modules, "transformer."), uniworld_family="FLUX.1 Kontext")
    with pytest.raises(UniWorldError, match=r"was trained for 'FLUX\.1 Kontext', and the model is UniWorld-V1"):
        model.load_lora(file)
    assert model.loras == ()
    convert_lora(file, tmp_path / "converted.safetensors")
    assert read_lora(tmp_path / "converted.safetensors").family == "FLUX.1 Kontext"
    written(tmp_path, named(modules, "transformer."), uniworld_family="UniWorld-V1")
    open_lora(file, layers_of_painter(model.parts))


def test_all_that_does_not_fit_is_in_one_error(modules: Any, network: Any, tmp_path: Path) -> None:
    name, (down, up) = next(iter(modules.items()))
    wide = torch.cat([down, down], 1)
    tensors = named({name: (wide, up), "lost": (down, up)}, "")
    with pytest.raises(ValueError, match=r"1 of 2 modules .* lost; .* maps \d+ to \d+ features, expected \d+ to \d+"):
        open_lora(written(tmp_path, tensors), layers_of(network))
    both = named({name: (down, up)}, "") | named({name: (down, up)}, "transformer.")
    with pytest.raises(ValueError, match=f"adapted twice: {name}"):
        open_lora(written(tmp_path, both), layers_of(network))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.lora_A.weight": (4, 8)}, "a.lora_A.weight without its other matrix"),
        ({"a.lora_A.weight": (4, 8), "a.lora_B.weight": (8, 3)}, "are not matrices of one rank"),
        ({"a.lora_A.weight": (4, 8, 1, 1), "a.lora_B.weight": (8, 4, 1, 1)}, "are not matrices of one rank"),
        (
            {"a.lora_A.weight": (4, 8), "a.lora_B.weight": (8, 4), "b.bias": (3,)},
            r"b.bias \[3\] does not belong to one",
        ),
        ({"a.lora_A.weight": (4, 8), "a.lora_B.weight": (8, 4), "b.alpha": ()}, "b.alpha without matrices"),
        ({"a.lora_A.weight": (), "a.lora_B.weight": (8, 4)}, "are not matrices of one rank"),
        ({"a.lora_A.weight": (0, 8), "a.lora_B.weight": (8, 0)}, "are not matrices of one rank"),
        ({"a.lora_A.weight": (1, 8), "a.lora_B.weight": (8, 1), "a.lora_down.weight": (1, 8)}, "are the same matrix"),
        (
            {"a.lora_A.weight": (1, 8), "a.lora_B.weight": (8, 1), "a.lora_A.default.weight": (1, 8)},
            "are the same matrix",
        ),
        ({"a.lora_A.weight": (1, 8), "a.lora_B.weight": (8, 1), "a.lora_magnitude_vector": (8,)}, "but a DoRA"),
        ({"a.lora_down.weight": (1, 8), "a.lora_up.weight": (8, 1), "a.dora_scale": (8, 1)}, "but a DoRA"),
        ({"a.hada_w1_a": (4, 4), "a.hada_w1_b": (4, 4)}, r"but a LoHa \(a.hada_w1_a, a.hada_w1_b\)"),
        ({"a.lokr_w1": (4, 4), "a.alpha": ()}, "but a LoKr"),
        ({"a.lora_A.weight": (1, 8), "a.lora_B.weight": (8, 1), "a.lora_B.bias": (8,)}, "but a LoRA with biases"),
        ({"a.weight": (4, 8)}, r"holds no LoRA: .*\(a.weight\)"),
        ({}, "holds no LoRA"),
        (
            {f"a.lora_{k}.{n}.weight": (2, 2) for k in "AB" for n in ("default", "old")},
            "several adapters: default, old",
        ),
    ],
)
def test_files_that_are_no_plain_loras_are_errors(
    tensors: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_lora(written(tmp_path, {name: torch.ones(shape) for name, shape in tensors.items()}))


@pytest.mark.parametrize(("alpha", "strength"), [(1e300, 1.0), (RANK, 1e38)])
def test_a_product_that_overflows_names_the_file(
    alpha: float, strength: float, model: UniWorld, velocity: Velocity, modules: Any, network: Any, tmp_path: Path
) -> None:
    lora = open_lora(written(tmp_path, named(modules, "")), layers_of(network), alpha)
    with pytest.raises(ValueError, match=r"safetensors overflows in torch.float32 at strength"):
        velocity(LoraPainter(model.dit, lora, strength * 100))


def test_damaged_and_missing_files_are_errors(modules: Any, network: Any, tmp_path: Path) -> None:
    for source, message in ((tmp_path / "none", "does not exist"), (tmp_path, "not exactly one safetensors file")):
        with pytest.raises(ValueError, match=message):
            read_lora(source)
    (tmp_path / "a.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_lora(tmp_path / "a.bin")
    (tmp_path / "b.safetensors").write_bytes(b"\x00" * 7)
    with pytest.raises(ValueError, match="cannot be read"):
        read_lora(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").unlink()
    name, (down, up) = next(iter(modules.items()))
    with pytest.raises(ValueError, match="NaN or infinite"):
        open_lora(written(tmp_path, named({name: (down, up / 0)}, "")), layers_of(network))
    with pytest.raises(ValueError, match=r"alpha is nan; it must be a finite number"):
        open_lora(written(tmp_path, named({name: (down, up)}, "")), layers_of(network), alpha=float("nan"))


def test_layers_with_ambiguous_flat_names_need_dots(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2)}), "a_b": nn.Linear(2, 2)})
    tensors = {"lora_unet_a_b.lora_down.weight": torch.ones(1, 2), "lora_unet_a_b.lora_up.weight": torch.ones(2, 1)}
    found = match(read_lora(written(tmp_path, tensors)), layers_of(net))
    assert [target.layer for targets in found.values() for target in targets] == ["a_b"]


# --- running ----------------------------------------------------------------------------------------------------------


def test_strengths_add_up_and_leave_no_trace(
    network: Any, modules: Any, model: UniWorld, velocity: Velocity, merged: Any, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kinds = {name: type(module) for name, module in network.named_modules()}
    plain = velocity()
    lora = open_lora(written(tmp_path, named(modules, "")), layers_of(network))
    two = LoraPainter(LoraPainter(model.dit, lora, 0.75), lora, -0.25)
    torch.testing.assert_close(velocity(two), merged(0.5), rtol=1e-5, atol=1e-5)
    assert torch.equal(velocity(LoraPainter(model.dit, lora, 0.0)), plain)
    assert torch.equal(velocity(), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {name: type(module) for name, module in network.named_modules()} == kinds
    assert not any("low_rank" in vars(module) for module in network.modules())


def test_an_error_while_it_runs_leaves_no_trace(network: Any) -> None:
    layer = network.get_submodule("proj_out")
    product = torch.zeros(1, layer.in_features), torch.zeros(layer.out_features, 1)

    def interrupted() -> None:
        with adapted([(layer, product), (layer, product)]):
            assert len(layer.low_rank) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert type(layer) is nn.Linear
    assert not hasattr(layer, "low_rank")


def test_a_compiled_network_follows(network: Any) -> None:
    layer = nn.Linear(3, 2)
    block = torch.compile(nn.Sequential(nn.ReLU(), layer), backend="eager")
    x, product = torch.ones(1, 3), (torch.ones(1, 3), torch.ones(2, 1))
    with torch.inference_mode():
        plain = block(x)
        with adapted([(layer, product)]):
            torch.testing.assert_close(block(x), plain + 3)
        assert torch.equal(block(x), plain)


def test_the_public_class_applies_them_and_removes_them(
    model: UniWorld, condition: Condition, modules: Any, tmp_path: Path
) -> None:
    file = written(tmp_path, named(modules, "transformer."))
    plain = model.sample(condition, **SIZE)
    try:
        assert model.load_lora(file, 0.5).load_lora(file, alpha=2 * RANK) is model
        assert not torch.allclose(model.sample(condition, **SIZE), plain, atol=1e-2)
        with pytest.raises(ValueError, match="strength is inf"):
            model.load_lora(file, float("inf"))
    finally:
        model.unload_loras()
    assert torch.equal(model.sample(condition, **SIZE), plain)


@pytest.mark.parametrize("storage", ["int8", "fp8", "nf4", "bfloat16"])
def test_every_storage_adds_the_same_product(
    storage: str, tmp_path: Path, golden_data: Any, condition: Condition, modules: Any
) -> None:
    if storage == "nf4":
        pytest.importorskip("bitsandbytes")
    model = golden_data.open_model(storage=storage)
    file = written(tmp_path, named(modules, ""))
    before = {name: tensor.clone() for name, tensor in model.dit.state_dict().items()}
    plain = model.sample(condition, **SIZE)
    changed = model.load_lora(file).sample(condition, **SIZE)
    # The same weights, dequantized, with the product merged into them.
    other = golden_data.open_model(storage=storage)
    for name, (down, up) in modules.items():
        layer = other.dit.transformer.get_submodule(name)
        weight = layer(torch.eye(layer.in_features)).T - layer.bias[:, None]
        dense = nn.Linear(layer.in_features, layer.out_features)
        dense.weight.data, dense.bias.data = weight + up @ down, layer.bias.data
        other.dit.transformer.set_submodule(name, dense)
    torch.testing.assert_close(changed, other.sample(condition, **SIZE), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.unload_loras().sample(condition, **SIZE), plain)
    for name, tensor in model.dit.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))


@pytest.mark.parametrize("offload", ["blocks", "disk"])
def test_streamed_blocks_add_the_same_product(
    offload: str, tmp_path: Path, golden_data: Any, condition: Condition, modules: Any, model: UniWorld
) -> None:
    file = written(tmp_path, named(modules, ""))
    streamed = golden_data.open_model(offload=offload)
    try:
        expected = model.load_lora(file).sample(condition, **SIZE)
        try:
            found = streamed.load_lora(file).sample(condition, **SIZE)
        except ValueError as error:
            pytest.skip(str(error))  # an old diffusers without a GPU
        torch.testing.assert_close(found, expected)
    finally:
        model.unload_loras()
    torch.testing.assert_close(streamed.unload_loras().sample(condition, **SIZE), model.sample(condition, **SIZE))


def test_the_cache_of_blocks_works_with_a_lora(
    model: UniWorld, condition: Condition, modules: Any, tmp_path: Path
) -> None:
    file = written(tmp_path, named(modules, ""))
    try:
        model.load_lora(file)
        plain, cached = (model.sample(condition, **SIZE | {"steps": 3}, cache=cache) for cache in ("off", "light"))
    finally:
        model.unload_loras()
    assert cached.shape == plain.shape
    assert bool(torch.isfinite(cached).all())


def test_the_shipped_lora_fits_nano(tmp_path: Path) -> None:
    from uniworld.uniworld_core.loading.shipped import shipped_lora_folders

    nano = UniWorld.from_pretrained("nano", dtype=torch.float32)
    file = shipped_lora_folders()[0] / "uniworld_nano_negative.safetensors"
    nano.load_lora(file)
    found, lora = load_file(file), nano._loras[0][0]
    assert len(lora.products) * 2 == len(found)
