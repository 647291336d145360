"""What a LoRA is and what each program makes of it, for `uniworld lora inspect`."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from .files import PREFIXES, UNKNOWN_ALPHA, LoraFile, LoraModule

_BLOCK = re.compile(r"(?:^|[._])(?:transformer_blocks|double_blocks)[._](\d+)")
_SINGLE = re.compile(r"(?:^|[._])single_(?:transformer_)?blocks[._]")
_FLUX_ONLY = re.compile(r"double_blocks|(?:^|[._])(?:ff|ff_context|norm1|norm1_context)[._]")
_QWEN_ONLY = re.compile(r"(?:img|txt)_(?:mlp|mod)[._]")
_FLUX_DOUBLE_BLOCKS = 19  # Qwen-Image has 60 blocks of the same names
_KOHYA = ("lora_unet_", "lora_transformer_")
_PEFT, _DIFFUSERS = "base_model.model.", "transformer."


@dataclass(frozen=True)
class LoraReport:
    """Facts about a LoRA.

    Attributes:
        family: the base model, guessed from the names.
        naming: whose names they are.
        ranks, alphas, scales: {value: number of modules}.
        alpha_sources: where alpha is from.
        alpha_known: whether every module has an alpha.
        comfyui, diffusers: what these programs do with the file at strength 1.
    """

    family: str
    naming: str
    ranks: dict[int, int]
    alphas: dict[float, int]
    scales: dict[float, int]
    alpha_sources: tuple[str, ...]
    alpha_known: bool
    comfyui: str
    diffusers: str


def report_on(lora: LoraFile, alpha: float | None = None) -> LoraReport:
    """Return the facts about a LoRA.

    Args:
        alpha: replaces alpha of the file and of its configuration.
    """
    modules = list(lora.modules.values())
    alphas = [lora.alpha(module, alpha) for module in modules]
    naming, family = _naming(modules), guess_family(lora)
    return LoraReport(
        family=family,
        naming=naming,
        ranks=dict(Counter(module.rank for module in modules)),
        alphas=dict(Counter(value for value, _ in alphas)),
        scales=dict(Counter(lora.scale(module, alpha) for module in modules)),
        alpha_sources=tuple(dict.fromkeys(source for _, source in alphas)),
        alpha_known=UNKNOWN_ALPHA not in {source for _, source in alphas},
        comfyui=_in_comfyui(lora, naming, family, alpha),
        diffusers=_in_diffusers(lora, naming, family, alpha),
    )


def guess_family(lora: LoraFile) -> str:
    """Return the base model of a LoRA, as far as the names of its modules decide it."""
    names = [module.bare for module in lora.modules.values()]
    if any(_SINGLE.search(name) or _FLUX_ONLY.search(name) for name in names):
        return "FLUX"
    blocks = [int(match[1]) for name in names if (match := _BLOCK.search(name))]
    if any(_QWEN_ONLY.search(name) for name in names) or max(blocks, default=0) >= _FLUX_DOUBLE_BLOCKS:
        return "Qwen-Image"
    return "FLUX or Qwen-Image" if blocks else "unknown"


def _naming(modules: list[LoraModule]) -> str:
    if all(module.name.startswith(_KOHYA) for module in modules):
        return "kohya's scripts (lora_unet_)"
    for prefix, whose in ((_PEFT, "PEFT"), (_DIFFUSERS, "diffusers"), ("diffusion_model.", "ComfyUI")):
        if all(module.name.startswith(prefix) for module in modules):
            return f"{whose} ({prefix})"
    return "no prefix" if not any(module.name.startswith((*PREFIXES, *_KOHYA)) for module in modules) else "mixed"


def _in_comfyui(lora: LoraFile, naming: str, family: str, alpha: float | None) -> str:
    if naming.startswith("PEFT"):
        return f"loads nothing, as it does not know names that begin with {_PEFT}"
    if naming == "no prefix" and family == "FLUX":
        return "loads nothing, as it does not know names of FLUX without a prefix"
    return _share(
        lora, alpha, {module.name: (module.alpha or module.rank) / module.rank for module in lora.modules.values()}
    )


def _in_diffusers(lora: LoraFile, naming: str, family: str, alpha: float | None) -> str:
    if naming.startswith("PEFT"):
        return f"loads nothing or fails, as it does not know names that begin with {_PEFT}"
    if not naming.startswith("diffusers"):
        return "depends on its version, which may convert these names"
    stored = [module.alpha for module in lora.modules.values() if module.alpha is not None]
    if stored and family != "FLUX":
        return f"its loader of {family} fails on alpha tensors" if family == "Qwen-Image" else "depends on the model"
    in_header = lora.config is not None and lora.config.in_file
    scales = {
        module.name: lora.scale(module) if in_header else (module.alpha or module.rank) / module.rank
        for module in lora.modules.values()
    }
    return _share(lora, alpha, scales)


def _share(lora: LoraFile, alpha: float | None, applied: dict[str, float]) -> str:
    """Describe what a program applies, {module: scale}, in relation to the strength of training."""
    shares = [applied[name] / lora.scale(module, alpha) for name, module in lora.modules.items()]
    share = shares[0]
    if not all(math.isclose(share, other, rel_tol=1e-4) for other in shares):
        return "applies its modules at different strengths: convert it"
    if math.isclose(share, 1.0, rel_tol=1e-4):
        return "applies the same"
    return f"applies {share:.4g} of that: set strength {1 / share:.4g} there, or convert it"
