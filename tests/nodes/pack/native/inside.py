"""Checks that run inside a real ComfyUI, on the CPU: `python inside.py FOLDER CHECK ...` prints a JSON line for each.

`test_in_comfyui.py` starts it, with the Python of that ComfyUI. A check is a function of `CHECKS` that returns figures.
"""

# ruff: noqa: E402, I001  # imports follow the set-up of sys.path and sys.argv, and their order is main.py's
from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
COMFY, NAMES = Path(sys.argv[1]).resolve(), sys.argv[2:]
PLACE = Path(tempfile.mkdtemp(prefix="uniworld-comfy-"))

sys.path.insert(0, str(COMFY))
sys.argv = ["main.py", "--cpu", "--base-directory", str(PLACE)]
import comfy.options

comfy.options.enable_args_parsing()
importlib.import_module("utils.extra_config")  # first, as in main.py: later it would be another module of that name
importlib.import_module("server")
import comfy.model_management as management
import comfy.samplers
import comfy.utils
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

    def __init__(self) -> None:
        loader = package.NODE_CLASS_MAPPINGS["UniWorldLoader"]
        given = run("UniWorldLoader", checkpoint="nano", flux="auto", siglip="auto", dtype="float32", device="default")
        self.outputs = dict(zip(loader.RETURN_NAMES, given))
        self.conditioning = run("UniWorldCondition", vlm=self.outputs["vlm"], prompt=PROMPT)[0]
        self.latent = {"samples": torch.zeros(1, 16, SIDE // 8, SIDE // 8)}
        self.sigmas = run(
            "UniWorldFlowScheduler", dit=self.outputs["dit"], latent=self.latent, steps=STEPS, denoise=1.0
        )[0]
        self.ours = self.sample()
        self.picture = self.decode(self.ours)

    def sample(self) -> torch.Tensor:
        """The latent that our own sampler gives."""
        return run(
            "UniWorldSampler", dit=self.outputs["dit"], conditioning=self.conditioning, latent=self.latent, seed=SEED,
            steps=STEPS, guidance=3.5, denoise=1.0,
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
        sigmas = self.sigmas if sigmas is None else sigmas
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
    from uniworld.uniworld_core.loading.weights import SAME_NAMES, Shards
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
    facts = PaintingFacts(FLUX_LATENTS, FLUX_SHIFT, 1024, token_bytes(3072), 1)

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
    from uniworld.uniworld_core.families.family import ModelFolders
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
def partial() -> dict[str, Any]:
    """A card with room for half of the DiT. ComfyUI loads at least 128 MiB, so nano's share is set here."""
    here = nano()
    dit = here.outputs["dit"]
    patcher = dit._held.patcher
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
