"""Checks that run inside a real ComfyUI, on the CPU: `python inside.py FOLDER CHECK ...` prints a JSON line for each.

`test_in_comfyui.py` starts it, with the Python of that ComfyUI. A check is a function of `CHECKS` that returns figures.
"""

# ruff: noqa: E402, I001  # imports follow the set-up of sys.path and sys.argv, and their order is main.py's
from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
COMFY, NAMES = Path(sys.argv[1]).resolve(), sys.argv[2:]
PLACE = Path(tempfile.mkdtemp(prefix="uniworld-comfy-"))
atexit.register(shutil.rmtree, PLACE, ignore_errors=True)  # up to 2 GB of converted models

sys.path.insert(0, str(COMFY))
sys.argv = ["main.py", "--cpu", "--base-directory", str(PLACE)]
import comfy.options

comfy.options.enable_args_parsing()
importlib.import_module("utils.extra_config")  # first, as in main.py: later it would be another module of that name
importlib.import_module("server")
import comfy.model_management as management
import comfy.samplers
import comfy.utils
import folder_paths
import nodes
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_model_advanced import ModelSamplingFlux

spec = importlib.util.spec_from_file_location("uniworld", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
package = importlib.util.module_from_spec(spec)
sys.modules["uniworld"] = package
spec.loader.exec_module(package)

from uniworld.nodes import host
from uniworld.nodes.pack.native import model as native_model
from uniworld.nodes.pack.parts import PaintingPart
from uniworld.uniworld_core.loading.layers import STORED_LAYERS
from uniworld.uniworld_core.sampling.sampler import make_noise

PROMPT = "Paint a red circle on a blue background."
SEED, STEPS, SIDE = 7, 28, 128
CHECKS: dict[str, Callable[[], dict[str, Any]]] = {}


def check(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CHECKS[function.__name__] = function
    return function


def run(node: str, **inputs: Any) -> Any:
    """What a node of ours gives."""
    made = package.NODE_CLASS_MAPPINGS[node]()
    return getattr(made, made.FUNCTION)(**inputs)


class Nano:
    """Nano's outputs, our picture of a prompt, and what graphs of ComfyUI's nodes make of it."""

    def __init__(self, **settings: str) -> None:
        loader = package.NODE_CLASS_MAPPINGS["UniWorldLoader"]
        folders = {"checkpoint": "nano", "flux": "auto", "siglip": "auto"}
        given = run("UniWorldLoader", **folders, dtype="float32", device="default", **settings)
        self.outputs = dict(zip(loader.RETURN_NAMES, given))
        self.conditioning = run("UniWorldCondition", vlm=self.outputs["vlm"], prompt=PROMPT)[0]
        self.latent = {"samples": torch.zeros(1, 16, SIDE // 8, SIDE // 8)}
        self.sigmas = run(
            "UniWorldFlowScheduler", dit=self.outputs["dit"], latent=self.latent, steps=STEPS, denoise=1.0
        )[0]
        self.ours = self.sample()
        self.picture = self.decode(self.ours)

    def sample(self, steps: int = STEPS) -> torch.Tensor:
        """The latent that our own sampler gives."""
        return run(
            "UniWorldSampler", dit=self.outputs["dit"], conditioning=self.conditioning, latent=self.latent, seed=SEED,
            steps=steps, guidance=3.5, denoise=1.0,
        )[0]["samples"]  # fmt: skip

    @property
    def model(self) -> Any:
        return self.outputs["MODEL"]

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """8-bit values of the picture that ComfyUI's VAE node makes."""
        return (nodes.VAEDecode().decode(self.outputs["VAE"], {"samples": samples})[0] * 255).round()

    def paint(self, model: Any = None, sampler: str = "euler", sigmas: Any = None, latent: Any = None) -> torch.Tensor:
        """The latent that SamplerCustomAdvanced gives."""
        latent = latent or self.latent
        guider = custom.BasicGuider().get_guider(model or self.model, self.conditioning)[0]
        chosen = custom.KSamplerSelect().get_sampler(sampler)[0]
        sigmas = (self.sigmas if sigmas is None else sigmas).clone()  # uni_pc writes into what it is given
        return custom.SamplerCustomAdvanced().sample(Noise(), guider, chosen, sigmas, latent)[0]["samples"]

    def ksampler(self, model: Any = None, latent: Any = None, denoise: float = 1.0) -> torch.Tensor:
        """The latent that ModelSamplingFlux and KSampler give."""
        patched = ModelSamplingFlux().patch(model or self.model, 1.15, 0.5, SIDE, SIDE)[0]
        cond = self.conditioning
        return nodes.KSampler().sample(
            patched, SEED, STEPS, 1.0, "euler", "simple", cond, cond, latent or self.latent, denoise
        )[0]["samples"]


class Noise:
    """NOISE of one item, as our sampler draws it."""

    seed = SEED

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        return make_noise([SEED + i for i in range(len(latent["samples"]))], latent["samples"].shape[1:])


_kept: list[Nano] = []


def nano() -> Nano:
    if not _kept:
        _kept.append(Nano())
    return _kept[0]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


@check
def outputs_are_lazy() -> dict[str, Any]:
    loader = package.NODE_CLASS_MAPPINGS["UniWorldLoader"]
    given = run("UniWorldLoader", checkpoint="tiny", flux="auto", siglip="auto", dtype="float32", device="default")
    model, vae = given[loader.RETURN_NAMES.index("MODEL")], given[loader.RETURN_NAMES.index("VAE")]
    before = (model._lazy_made, vae._lazy_made)
    kinds = [isinstance(model, comfy.model_patcher.ModelPatcher), isinstance(vae, comfy.sd.VAE)]
    return {"made": before != (None, None), "kinds": kinds, "clone": type(model.clone()).__name__}


@check
def parity() -> dict[str, Any]:
    here = nano()
    painted = here.paint()
    own = run("UniWorldVAEDecode", vae=here.outputs["vae"], latent={"samples": here.ours})[0]
    return {"latent": apart(painted, here.ours), "size": float(here.ours.abs().max()),
            "bytes": apart(here.decode(painted), (own * 255).round())}  # fmt: skip


@check
def latents_of_unipic() -> dict[str, Any]:
    """What ComfyUI's own nodes say of a LATENT of UniPic, and whether ours still reads it behind one that only copies it."""
    from comfy_extras.nodes_latent import LatentAdd
    from uniworld.nodes.pack.latents import samples_of, to_latent
    from uniworld.uniworld_core.families.unipic.config import UNIPIC_LATENTS

    here, z = nano(), torch.randn(2, 16, 8, 8)
    latent = to_latent(z, UNIPIC_LATENTS)
    masked = nodes.SetLatentNoiseMask().set_mask(latent, torch.ones(1, SIDE, SIDE))[0]
    vae = here.outputs["VAE"]
    readers: dict[str, Callable[[Any], Any]] = {
        "KSampler": lambda given: here.ksampler(latent=given),
        "SamplerCustomAdvanced": lambda given: here.paint(latent=given),
        "VAEDecode": lambda given: nodes.VAEDecode().decode(vae, given),
        "VAEDecodeTiled": lambda given: nodes.VAEDecodeTiled().decode(vae, given, 512),
        "LatentUpscale": lambda given: nodes.LatentUpscale().upscale(given, "bilinear", 64, 64, "disabled"),
        "RepeatLatentBatch": lambda given: nodes.RepeatLatentBatch().repeat(given, 2),
        "LatentAdd": lambda given: LatentAdd.execute(here.latent, given),
        "SaveLatent": lambda given: nodes.SaveLatent().save(given),
    }
    said: dict[str, set[str]] = {}
    for name, read in readers.items():
        for given in (latent, masked):
            try:
                read(given)
            except Exception as error:  # a node that reads it would be the fault
                said.setdefault(name, set()).add(f"{type(error).__name__}: {error}")
    return {
        "said": {name: sorted(texts) for name, texts in said.items()},
        "readers": sorted(readers),
        "kept": bool(samples_of(masked, UNIPIC_LATENTS, "this check").equal(z)) and "noise_mask" in masked,
    }


@check
def native_parts_of_unipic() -> dict[str, Any]:
    """What the MODEL and VAE of a UniPic say when a node of ComfyUI uses them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_unipic import write_unipic
    from uniworld.uniworld_core.loading.shipped import shipped_model

    write_unipic(PLACE / "models" / "unipic" / "UniPic", shipped_model("tiny").checkpoint)
    given = run("UniWorldLoader", checkpoint="UniPic", flux="auto", siglip="auto", dtype="float32", device="default")
    outputs = dict(zip(package.NODE_CLASS_MAPPINGS["UniWorldLoader"].RETURN_NAMES, given))
    uses = {
        "MODEL": lambda: nano().ksampler(outputs["MODEL"]),
        "VAE": lambda: nodes.VAEDecode().decode(outputs["VAE"], nano().latent),
    }
    said = {}
    for name, use in uses.items():
        try:
            use()
        except Exception as error:
            said[name] = str(error)
    return said


@check
def encode() -> dict[str, Any]:
    here = nano()
    picture = here.picture / 255
    own = run("UniWorldVAEEncode", vae=here.outputs["vae"], image=picture)[0]["samples"]
    return {"latent": apart(nodes.VAEEncode().encode(here.outputs["VAE"], picture)[0]["samples"], own)}


@check
def ksampler() -> dict[str, Any]:
    here = nano()
    return {"bytes": apart(here.decode(here.ksampler()), here.picture)}


@check
def full_width() -> dict[str, Any]:
    """FLUX.1-dev's widths, one double and one single block of random weights."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file
    from uniworld.uniworld_core.backbones.flux_dit import DiT, token_bytes
    from uniworld.uniworld_core.backbones.flux_latents import FLUX_LATENTS, FLUX_SHIFT
    from uniworld.uniworld_core.backbones.flux_transformer import transformer_part, transformer_settings
    from uniworld.uniworld_core.families.family import PaintingFacts
    from uniworld.uniworld_core.loading.names import SAME_NAMES
    from uniworld.uniworld_core.loading.weights import Shards
    from uniworld.uniworld_core.sampling.condition import Condition
    from uniworld.uniworld_core.sampling.sampler import sample

    raw = dict(
        _class_name="FluxTransformer2DModel", in_channels=64, num_layers=1, num_single_layers=1, guidance_embeds=True,
        joint_attention_dim=4096, pooled_projection_dim=768, num_attention_heads=24, attention_head_dim=128,
        axes_dims_rope=[16, 56, 56],
    )  # fmt: skip
    torch.manual_seed(0)
    settings = transformer_settings(raw, "test")
    network = FluxTransformer2DModel.from_config(settings)
    folder = PLACE / "full"
    folder.mkdir()
    save_file({k: torch.randn_like(v) * 0.02 for k, v in network.state_dict().items()}, folder / "model.safetensors")
    del network
    part = transformer_part(settings, Shards(folder), SAME_NAMES, "test", lambda made: DiT(made, FLUX_LATENTS))
    facts = PaintingFacts("UniWorld-V1", FLUX_LATENTS, FLUX_SHIFT, 1024, token_bytes(3072), 1)

    class Parts:
        def network(self, name: str) -> Any:
            return part

    model = native_model.native_model(PaintingPart(Parts(), "dit", torch.float32, "default", facts=facts))
    tokens, pooled = torch.randn(1, 40, 4096), torch.randn(1, 768)
    dit = part.load(torch.float32, "cpu")
    latent = {"samples": torch.zeros(1, 16, 16, 16)}
    sigmas = torch.tensor([1.0, 0.6, 0.0])
    noise = Noise().generate_noise(latent)
    ours = FLUX_LATENTS.from_model(sample(dit, Condition(tokens, pooled), noise, sigmas, 3.5))
    cond = [[tokens, {"pooled_output": pooled, "guidance": 3.5}]]
    guider = custom.BasicGuider().get_guider(model, cond)[0]
    theirs = custom.SamplerCustomAdvanced().sample(
        Noise(), guider, custom.KSamplerSelect().get_sampler("euler")[0], sigmas, latent
    )[0]["samples"]
    return {"latent": apart(theirs, ours), "size": float(ours.abs().max())}


def lora(kind: str) -> tuple[Path, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """A LoRA of random numbers in that naming, of layers that diffusers and BFL share, and {layer: (up, down)}."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    layers = {
        "single_transformer_blocks.0.proj_out": ("single_blocks_0_linear2", 192, 960),
        "transformer_blocks.1.ff.net.2": ("double_blocks_1_img_mlp_2", 192, 768),
    }
    pairs = {
        name: (torch.randn(rows, 4) * 0.2, torch.randn(4, columns) * 0.2) for name, (_, rows, columns) in layers.items()
    }
    tensors = {}
    for name, (up, down) in pairs.items():
        if kind == "kohya":
            stem = f"lora_unet_{layers[name][0]}"
            tensors |= {
                f"{stem}.lora_up.weight": up,
                f"{stem}.lora_down.weight": down,
                f"{stem}.alpha": torch.tensor(4.0),
            }
        else:
            tensors |= {f"transformer.{name}.lora_B.weight": up, f"transformer.{name}.lora_A.weight": down}
    file = PLACE / f"{kind}.safetensors"
    save_file(tensors, file)
    return file, pairs


def _lora_check(kind: str) -> dict[str, Any]:
    here = nano()
    file, pairs = lora(kind)
    without = here.paint()
    loaded = comfy.sd.load_lora_for_models(here.model, None, comfy.utils.load_torch_file(str(file)), 0.8, 0)[0]
    changed = here.paint(loaded)
    dit = here.outputs["dit"].on_device()
    layers = {name: dit.transformer.get_submodule(name) for name in pairs}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    for name, (up, down) in pairs.items():
        layers[name].weight.data += 0.8 * (up @ down)
    merged = here.sample()
    for name, layer in layers.items():
        layer.weight.data.copy_(before[name])
    return {"changed": apart(changed, without), "merged": apart(changed, merged), "after": apart(here.paint(), without)}


@check
def lora_kohya() -> dict[str, Any]:
    return _lora_check("kohya")


@check
def lora_peft() -> dict[str, Any]:
    return _lora_check("peft")


@check
def shipped_lora() -> dict[str, Any]:
    """The LoRA that ships with nano, by ComfyUI's loader and its list."""
    here, name = nano(), "uniworld_nano_negative.safetensors"
    loaded = nodes.LoraLoaderModelOnly().load_lora_model_only(here.model, name, 1.0)[0]
    without, painted = here.decode(here.ksampler()), here.decode(here.ksampler(loaded))
    changed = float((painted - without).abs().mean())
    return {"listed": name in folder_paths.get_filename_list("loras"), "changed": changed}


@check
def lora_of_edit_r1() -> dict[str, Any]:
    """A folder as Edit-R1 publishes it, by our node, and its converted file by ComfyUI's loader; renamed only, half of it."""
    from safetensors.torch import load_file, save_file
    from uniworld.uniworld_core.lora.conversion import convert_lora

    here, folder = nano(), PLACE / "models" / "loras" / "r1"
    folder.mkdir(parents=True)
    shipped = load_file(folder_paths.get_full_path("loras", "uniworld_nano_negative.safetensors"))
    save_file(shipped, folder.parent / "renamed.safetensors")
    save_file(
        {name.replace("transformer", "base_model.model", 1): tensor for name, tensor in shipped.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    convert_lora(folder, folder.parent / "converted.safetensors")

    def ours(strength: float) -> torch.Tensor:
        dit = run("UniWorldLoadLoRA", dit=here.outputs["dit"], lora_name=name, strength_model=strength)[0]
        return run(
            "UniWorldSampler", dit=dit, conditioning=here.conditioning, latent=here.latent, seed=SEED, steps=STEPS,
            guidance=3.5, denoise=1.0,
        )[0]["samples"]  # fmt: skip

    def theirs(file: str) -> torch.Tensor:
        return here.paint(nodes.LoraLoaderModelOnly().load_lora_model_only(here.model, file, 1.0)[0])

    name = next(one for one in package.NODE_CLASS_MAPPINGS["UniWorldLoadLoRA"].inputs()[1].type if "adapter" in one)
    return {
        "effect": apart(ours(1.0), here.ours),
        "converted": apart(theirs("converted.safetensors"), ours(1.0)),
        "renamed": apart(theirs("renamed.safetensors"), ours(0.5)),
        "after": apart(here.sample(), here.ours),
    }


@check
def other_samplers() -> dict[str, Any]:
    """More steps than 28 bring every sampler near the same picture; with 28 they differ from euler, and from noise."""
    here = nano()
    euler = here.picture
    pictures = {name: here.decode(here.paint(sampler=name)) for name in ("dpmpp_2m", "heun", "uni_pc", "res_multistep")}
    mean = {name: float((picture - euler).abs().mean()) for name, picture in pictures.items()}
    simple = custom.BasicScheduler().get_sigmas(
        ModelSamplingFlux().patch(here.model, 1.15, 0.5, SIDE, SIDE)[0], "beta", STEPS, 1.0
    )[0]
    mean["beta"] = float((here.decode(here.paint(sigmas=simple)) - euler).abs().mean())
    noise = float((here.decode(Noise().generate_noise(here.latent)) - euler).abs().mean())
    return {"mean": mean, "noise": noise}


@check
def differential_diffusion() -> dict[str, Any]:
    """A soft mask: with DifferentialDiffusion, halves of it are painted for a share of the steps only."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    here = nano()
    mask = torch.linspace(0, 1, SIDE).expand(1, SIDE, SIDE)
    base = {"samples": torch.randn(1, 16, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(3))}
    latent = {**base, "noise_mask": mask}
    node = DifferentialDiffusion()
    patched = getattr(node, getattr(node, "FUNCTION", "execute"))(here.model)
    patched = (patched.result if hasattr(patched, "result") else patched)[0]
    plain, soft = here.paint(latent=latent), here.paint(patched, latent=latent)
    column = (soft - base["samples"]).abs().mean(dim=(0, 1, 2))
    return {"effect": apart(plain, soft), "kept": float(column[0]), "painted": float(column[-1])}


@check
def fp8() -> dict[str, Any]:
    """The file that `uniworld convert --to comfy --storage fp8` writes, loaded by ComfyUI at nano's widths."""
    from uniworld.training.publish.conversion import Conversion, convert_checkpoint
    from uniworld.uniworld_core.loading.folders import ModelFolders
    from uniworld.uniworld_core.loading.shipped import shipped_model

    here, shipped = nano(), shipped_model("nano")
    folders = ModelFolders(shipped.checkpoint, shipped.flux, shipped.siglip)
    results = {}
    plain = here.paint()
    for storage in ("float32", "fp8"):
        convert_checkpoint(folders, PLACE / storage, Conversion("comfy", storage, "nano"))
        state = comfy.utils.load_torch_file(str(PLACE / storage / "diffusion_models/nano.safetensors"))
        config = comfy.model_detection.model_config_from_unet(state, "")
        widths = here.model.model.model_config.unet_config
        config.unet_config = widths
        config.latent_format = here.model.model.latent_format
        stored = torch.float8_e4m3fn if storage == "fp8" else torch.float32
        config.set_inference_dtype(stored, torch.float32 if storage == "fp8" else None)
        model = config.get_model(state, "")
        left = model.load_model_weights(state, "")
        weight = model.diffusion_model.single_blocks[0].linear1.weight
        patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        painted = here.paint(patcher)
        error = float((painted - plain).norm() / plain.norm())
        results[storage] = {"dtype": str(weight.dtype), "error": error, "left": len(state), "kind": type(left).__name__}
    return results


@check
def gguf() -> dict[str, Any]:
    """The converted DiT as a Q8_0 file, loaded by city96/ComfyUI-GGUF; both are named by the environment."""
    folder = os.environ.get("UNIWORLD_COMFY_GGUF")
    if not folder or importlib.util.find_spec("gguf") is None:
        return {
            "skipped": "UNIWORLD_COMFY_GGUF does not name city96's ComfyUI-GGUF, or the package gguf is not installed"
        }
    import gguf as library

    file = Path(folder) / "__init__.py"
    spec = importlib.util.spec_from_file_location("gguf_pack", file, submodule_search_locations=[folder])
    pack = importlib.util.module_from_spec(spec)
    sys.modules["gguf_pack"] = pack
    spec.loader.exec_module(pack)
    here = nano()
    target = Path(folder_paths.get_folder_paths("diffusion_models")[0])
    target.mkdir(parents=True, exist_ok=True)
    writer = library.GGUFWriter(str(target / "nano.gguf"), "flux")
    for name, tensor in here.model.model.diffusion_model.state_dict().items():
        kind = library.GGMLQuantizationType.F32
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            kind = library.GGMLQuantizationType.Q8_0
        values = library.quants.quantize(tensor.float().numpy(), kind)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # ComfyUI's detection takes FLUX.1-dev's widths for granted.
    detect, config = comfy.model_detection.model_config_from_unet, here.model.model.model_config

    def narrow(*given: Any, **named: Any) -> Any:
        found = detect(*given, **named)
        found.unet_config, found.latent_format = dict(config.unet_config), here.model.model.latent_format
        return found

    comfy.model_detection.model_config_from_unet = narrow
    try:
        model = pack.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet("nano.gguf")[0]
    finally:
        comfy.model_detection.model_config_from_unet = detect
    plain, painted = here.paint(), here.paint(model)
    lora_file, _ = lora("kohya")
    loaded = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(lora_file)), 0.8, 0)[0]
    with_lora = here.paint(comfy.sd.load_lora_for_models(
        here.model, None, comfy.utils.load_torch_file(str(lora_file)), 0.8, 0
    )[0])  # fmt: skip
    both = here.paint(loaded)
    return {"error": float((painted - plain).norm() / plain.norm()), "lora": apart(both, painted),
            "lora_error": float((both - with_lora).norm() / with_lora.norm())}  # fmt: skip


@check
def partial() -> dict[str, Any]:
    return _half(nano())


@check
def partial_quantized() -> dict[str, Any]:
    found = {}
    for storage in ("bfloat16", "int8", "fp8", *(["nf4"] if importlib.util.find_spec("bitsandbytes") else [])):
        here = Nano(storage=storage)
        left = {type(layer) for layer in here.outputs["dit"].on_device().modules()} & set(STORED_LAYERS)
        found[storage] = _half(here) | {"left": len(left)}
    return found


@check
def compiled() -> dict[str, Any]:
    """Blocks traced as for compiling, with the whole DiT loaded and with half of it."""
    real = torch.compile
    torch.compile = functools.partial(real, backend="eager")
    try:
        here = Nano(compile="blocks", attention="native")
        return _half(here) | {"whole": apart(here.ours, nano().ours)}
    finally:
        torch.compile = real


def _half(here: Nano) -> dict[str, Any]:
    """A card with room for half of the DiT. ComfyUI loads at least 128 MiB, so nano's share is set here."""
    dit = here.outputs["dit"]
    patcher = dit._managed.patcher
    size, load = patcher.model_size(), management.load_models_gpu
    management.unload_all_models()
    patcher.detach()
    management.load_models_gpu = lambda models, **_: [one.partially_load(one.load_device, size / 2) for one in models]
    try:
        painted = here.sample()
        low, loaded = bool(patcher.model.model_lowvram), int(patcher.loaded_size())
    finally:
        management.load_models_gpu = load
        patcher.detach()
    return {"lowvram": low, "share": loaded / size, "latent": apart(painted, here.ours),
            "again": apart(here.sample(), here.ours)}  # fmt: skip


@check
def castable() -> dict[str, Any]:
    """No plain layer is left in any part that the host holds."""
    nano()
    plain = (
        torch.nn.Linear,
        torch.nn.Conv2d,
        torch.nn.Conv3d,
        torch.nn.LayerNorm,
        torch.nn.GroupNorm,
        torch.nn.Embedding,
    )
    left = []
    for name in ("dit", "vae", "siglip"):
        part = nano().outputs[name].on_device()
        left += [f"{name}.{key}" for key, layer in part.named_modules() if type(layer) in plain]
    return {"left": left}


class SmallQwen:
    """Qwen2.5-VL of few and narrow layers, as UniWorld's VLM and as ComfyUI's CLIP, with the same random weights.

    Head size, patches, windows and vocabulary are those of the 7B model, which ComfyUI has in its code.
    """

    WIDTH, JOINT, POOLED = 256, 96, 32

    def __init__(self) -> None:
        import comfy.text_encoders.qwen_image as qwen_image
        import comfy.text_encoders.qwen_vl as qwen_vl
        from safetensors.torch import save_file
        from uniworld.uniworld_core.backbones.picture_processor import make_processor
        from uniworld.uniworld_core.backbones.qwen_config import QwenVLConfig
        from uniworld.uniworld_core.backbones.qwen_files import QWEN_NAMES, build_qwen
        from uniworld.uniworld_core.backbones.qwen_vl import VLM
        from uniworld.uniworld_core.families.uniworld_v1.projectors import Projector, TaskHead

        raw = json.loads((ROOT / "uniworld_core/shipped/nano/uniworld/config.json").read_text())
        raw |= dict(
            vocab_size=152064, hidden_size=self.WIDTH, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=128000, bos_token_id=151643, eos_token_id=151645,
            vision_start_token_id=151652, vision_end_token_id=151653, vision_token_id=151654, image_token_id=151655,
            video_token_id=151656, image_begin_token_id=151652, image_end_token_id=151653,
            rope_scaling={"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        )  # fmt: skip
        raw["vision_config"] |= dict(
            depth=9, hidden_size=256, intermediate_size=384, num_heads=16, fullatt_block_indexes=[7], patch_size=14,
            spatial_patch_size=14, window_size=112, out_hidden_size=self.WIDTH,
        )  # fmt: skip
        config = QwenVLConfig.from_dict(raw, "test")
        qwen = build_qwen(config).to_empty(device="cpu")
        # Computed buffers were made before, on the CPU, and `to_empty` has emptied them.
        fresh = build_qwen(config)
        for name, buffer in fresh.named_buffers():
            qwen.get_buffer(name).copy_(buffer)
        torch.manual_seed(5)
        for name, parameter in qwen.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name or "ln_q" in name else 0.0, 0.1)
        clip_l = "qwen25_7b"
        options = {f"{clip_l}_model_config": dict(
            hidden_size=self.WIDTH, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
        )}  # fmt: skip
        original = qwen_vl.Qwen2VLVisionTransformer

        def small(hidden_size: int, **given: Any) -> Any:
            made = original(hidden_size=256, num_layers=9, intermediate_size=384, **given)
            made.fullatt_block_indexes = [7]
            return made

        qwen_vl.Qwen2VLVisionTransformer = small

        class Target:
            params: dict[str, Any] = {}
            clip = staticmethod(qwen_image.te())
            tokenizer = staticmethod(qwen_image.QwenImageTokenizer)

        self.clip = comfy.sd.CLIP(Target, model_options=options | {"dtype": torch.float32})
        qwen_vl.Qwen2VLVisionTransformer = original
        state = {QWEN_NAMES.in_file(name): tensor.detach().clone() for name, tensor in qwen.state_dict().items()}
        inner = self.clip.cond_stage_model.qwen25_7b.transformer
        missing, _ = inner.load_state_dict(state, strict=False)
        assert not missing, missing
        tokenizer = self.clip.tokenizer.qwen25_7b.tokenizer
        side = 448 * 448
        processor = make_processor(
            "Qwen2VLImageProcessor",
            dict(
                patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=side, max_pixels=side, resample=3,
                size={"shortest_edge": side, "longest_edge": side},
                image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
            ),
            Path("test"),
        )  # fmt: skip
        self.vlm = VLM(config, qwen.eval(), tokenizer, processor, None)
        self.projector = Projector(self.WIDTH, 3 * self.JOINT, self.JOINT)
        self.head = TaskHead(self.WIDTH, 64).eval()
        self.pooled = torch.randn(self.POOLED)
        folder = Path(folder_paths.get_folder_paths("text_encoders")[0])
        folder.mkdir(parents=True, exist_ok=True)
        weights = {f"denoise_projector.{name}": tensor for name, tensor in self.projector.state_dict().items()}
        save_file(weights | {"pooled_empty_prompt": self.pooled}, folder / "small_projector.safetensors")
        save_file(dict(self.head.state_dict()), folder / "small_routing.safetensors")

    @torch.no_grad()
    def expected(self, conversation: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected tokens and routing logits by our own code."""
        inputs = self.vlm.inputs([conversation])
        hidden = self.vlm.hidden_states(inputs)
        return self.projector(hidden), self.head(self.vlm.assistant_states(inputs, hidden))


_small: list[SmallQwen] = []


def small_qwen() -> SmallQwen:
    if not _small:
        _small.append(SmallQwen())
    return _small[0]


def conversations() -> dict[str, Any]:
    from PIL import Image
    from uniworld.uniworld_core import Conversation, Turn
    from uniworld.uniworld_core.prompts.reference import Reference

    generator = torch.Generator().manual_seed(2)

    def picture(width: int, height: int) -> Reference:
        data = (torch.rand(height, width, 3, generator=generator) * 255).byte().numpy()
        return Reference(Image.fromarray(data))

    asked = Conversation().then(Turn("user", "Paint embedding:face a (red:1.4) fox.", ()))
    one = Conversation().then(Turn("user", "Make it snow.", [picture(300, 200)]))
    two = Conversation().then(Turn("user", "Combine both.", [picture(300, 200), picture(90, 260)]))
    turns = two.then(Turn("assistant", "", [picture(64, 64)])).then(Turn("user", "Now at night.", ()))
    return {"none": asked, "one": one, "two": two, "turns": turns}


@check
def text_encode() -> dict[str, Any]:
    from uniworld.nodes.pack.native.clip import encode_text

    here, found = small_qwen(), {}
    here.clip.clip_layer(-2)  # as CLIP Set Last Layer leaves it
    for name, conversation in conversations().items():
        ((tokens, extra),) = encode_text(here.clip, "small_projector.safetensors", conversation, 2.5)
        expected, _ = here.expected(conversation)
        found[name] = {
            "apart": apart(tokens, expected) if tokens.shape == expected.shape else f"{tokens.shape} {expected.shape}",
            "size": float(expected.abs().max()),
            "pooled": apart(extra["pooled_output"], here.pooled[None]), "guidance": extra["guidance"],
        }  # fmt: skip
    return found


@check
def text_encode_of_ordered_versions() -> dict[str, Any]:
    """Versions whose vision encoder puts the tokens back in order itself."""
    from uniworld.nodes.pack.native.clip import encode_text

    here, conversation = small_qwen(), conversations()["two"]
    visual = here.clip.cond_stage_model.qwen25_7b.transformer.visual
    expected, _ = here.expected(conversation)
    forward, plain = visual.forward, []

    def ordered(pixel_values: torch.Tensor, image_grid_thw: Any = None) -> torch.Tensor:
        out = forward(pixel_values, image_grid_thw)
        index = visual.get_window_index(image_grid_thw)[0]
        plain.append(bool((index != torch.arange(len(index))).any()))
        return out[torch.argsort(index)]

    visual.forward = ordered
    try:
        ((tokens, _),) = encode_text(here.clip, "small_projector.safetensors", conversation, 2.5)
    finally:
        del visual.forward
    return {"apart": apart(tokens, expected), "size": float(expected.abs().max()), "windows": all(plain)}


@check
def text_encode_node() -> dict[str, Any]:
    """The node itself, with an image; and what ComfyUI's own encoding would give."""
    from uniworld.uniworld_core import Conversation, Turn
    from uniworld.uniworld_core.images.pictures import to_image

    here = small_qwen()
    picture = conversations()["one"].refs[0].picture
    conversation = Conversation().then(Turn("user", "Make it snow.", conversations()["one"].refs))
    (entry,), extended = run(
        "UniWorldTextEncode", clip=here.clip, projector="small_projector.safetensors", prompt="Make it snow.",
        guidance=3.5, image=to_image([picture]),
    )  # fmt: skip
    expected, _ = here.expected(conversation)
    here.clip.layer_idx = None
    own = here.clip.encode_from_tokens(here.clip.tokenize("Make it snow.", images=[to_image([picture])]))
    choices = package.NODE_CLASS_MAPPINGS["UniWorldTextEncode"].INPUT_TYPES()["required"]["projector"]
    return {"apart": apart(entry[0], expected), "turns": len(extended.turns), "own": list(own.shape)[1] == entry[0].shape[1],
            "choices": [list(choices[0]), choices[1]["default"]]}  # fmt: skip


@check
def route_clip() -> dict[str, Any]:
    here, found = small_qwen(), {}
    for name, conversation in conversations().items():
        last = conversation.turns[-1]
        earlier = type(conversation)(conversation.turns[:-1]) if len(conversation.turns) > 1 else None
        paint, probability, *_ = run(
            "UniWorldRouteCLIP", clip=here.clip, head="small_routing.safetensors", prompt=last.text,
            references=list(last.refs) or None, conversation=earlier,
        )  # fmt: skip
        _, logits = here.expected(conversation)
        found[name] = {
            "apart": abs(probability - float(logits.softmax(-1)[0, 1])),
            "paint": paint == bool(logits[0, 1] > logits[0, 0]),
        }
    return found


@check
def siglip_encode() -> dict[str, Any]:
    import comfy.clip_vision
    from transformers import SiglipVisionConfig, SiglipVisionModel
    from uniworld.uniworld_core.backbones.picture_processor import make_processor
    from uniworld.uniworld_core.backbones.siglip import SigLIP
    from uniworld.uniworld_core.images.pictures import to_image

    settings = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=512, patch_size=16,
        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, num_channels=3,
    )  # fmt: skip
    torch.manual_seed(3)
    encoder = SiglipVisionModel(SiglipVisionConfig(**settings, vision_use_head=False)).eval()
    processor = make_processor(
        "SiglipImageProcessor",
        dict(size={"height": 512, "width": 512}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2),
        Path("test"),
    )
    file = PLACE / "siglip.json"
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "model_type": "siglip_vision_model"}
    file.write_text(json.dumps(settings | means))
    vision = comfy.clip_vision.ClipVisionModel(str(file))
    vision.model.float()
    vision.dtype = torch.float32
    state = {f"vision_model.{name.removeprefix('vision_model.')}": t for name, t in encoder.state_dict().items()}
    missing, _ = vision.load_sd(state)
    ours = SigLIP(encoder, processor)
    references = conversations()["two"].refs
    expected = ours.features([reference.picture for reference in references])
    (output,) = run("UniWorldSigLIPEncode", clip_vision=vision, references=references)
    single = to_image([references[0].picture])
    (of_image,) = run("UniWorldSigLIPEncode", clip_vision=vision, image=single)
    cropped = nodes.CLIPVisionEncode().encode(vision, single, "none")[0]["last_hidden_state"]
    size = float(expected.abs().max())
    return {"missing": [name for name in missing if "head" not in name], "apart": apart(output["last_hidden_state"], expected) / size,
            "image": apart(of_image["last_hidden_state"], expected[:1]) / size,
            "comfyui": apart(cropped, expected[:1]) / size, "batch": len(output["last_hidden_state"])}  # fmt: skip


@check
def style_model() -> dict[str, Any]:
    """VLM tokens, and SigLIP's through ComfyUI's StyleModelApply, paint what our own splice paints."""
    from uniworld.uniworld_core.images.pictures import to_image

    here = nano()
    from PIL import Image

    source = Image.new("RGB", (128, 128), (30, 40, 220))
    source.paste((250, 240, 10), (30, 30, 90, 90))
    prompt = "Replace the yellow square with a green circle."
    with_siglip = run("UniWorldReference", image=to_image([source]), siglip=here.outputs["siglip"])[0]
    without = run("UniWorldReference", image=to_image([source]))[0]
    spliced = run("UniWorldCondition", vlm=here.outputs["vlm"], prompt=prompt, references=with_siglip)[0]
    plain = run("UniWorldCondition", vlm=here.outputs["vlm"], prompt=prompt, references=without)[0]
    projectors = here.outputs["vlm"].held["projectors"].on_device()
    redux = comfy.ldm.flux.redux.ReduxImageEncoder(
        redux_dim=projectors.siglip_projector.width, txt_in_features=plain[0][0].shape[-1], dtype=torch.float32
    )
    state = projectors.siglip_projector.state_dict()
    redux.load_state_dict({f"{ {'0': 'redux_up', '2': 'redux_down'}[k[0]] }{k[1:]}": v for k, v in state.items()})

    class Vision:
        last_hidden_state = with_siglip[0].features[None]

    applied = nodes.StyleModelApply().apply_stylemodel(plain, comfy.sd.StyleModel(redux), Vision(), 1.0, "multiply")[0]
    here.conditioning, kept = spliced, here.conditioning
    ours = here.paint()
    here.conditioning = applied
    theirs = here.paint()
    here.conditioning = plain
    bare = here.paint()
    here.conditioning = kept
    return {
        "latent": apart(ours, theirs),
        "bytes": apart(here.decode(ours), here.decode(theirs)),
        "effect": apart(ours, bare),
    }


@check
def noise_and_sigmas() -> dict[str, Any]:
    here = nano()
    batch = {"samples": torch.zeros(2, 16, SIDE // 8, SIDE // 8)}
    (noise,) = run("UniWorldNoise", seed=SEED)
    (sigmas,) = run("UniWorldSigmas", latent=batch, steps=STEPS, denoise=1.0)
    ours = run(
        "UniWorldSampler", dit=here.outputs["dit"], conditioning=here.conditioning, latent=batch, seed=SEED, steps=STEPS,
        guidance=3.5, denoise=1.0,
    )[0]["samples"]  # fmt: skip
    guider = custom.BasicGuider().get_guider(here.model, here.conditioning)[0]
    euler = custom.KSamplerSelect().get_sampler("euler")[0]
    painted = custom.SamplerCustomAdvanced().sample(noise, guider, euler, sigmas, batch)[0]["samples"]
    return {"sigmas": apart(sigmas, here.sigmas), "batch": apart(painted, ours), "items": apart(painted[0], painted[1])}


def main() -> None:
    for name in NAMES or CHECKS:
        try:
            found: dict[str, Any] = {"figures": CHECKS[name]()}
        except BaseException:
            found = {"error": traceback.format_exc()}
        print("CHECK " + json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    assert host.current().is_comfyui()
    main()
