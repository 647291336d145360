"""FLUX's stand-in with its CLIP and T5: text to image in the world of shapes, in all of its styles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....uniworld_core.backbones.flux_dit import DiT
from ....uniworld_core.sampling import flow
from ....uniworld_core.sampling.condition import Condition
from ....uniworld_core.sampling.latents import LatentFormat
from ...files import atomic_file, read_saved
from ..tasks.prompts import caption, describe
from ..tasks.split import draw_triple
from ..tasks.tasks import make_task
from ..world import draw
from ..world.scene import Scene, random_scene
from .fit import Objective, fast_math, pixels, uint8_batch
from .parts import LATENT_CHANNELS, LATENT_SIDE, PAINTED, make_clip, make_flux, make_t5

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import PreTrainedTokenizerBase

_ENCODED = 16  # pictures per batch of the VAE
POOL = 32768  # pictures with precomputed latents; each use has a new prompt
T5_SHORT, T5_FULL = 48, 256  # tokens; the published programs pad to T5_FULL
FULL_EVERY = 16  # one batch in this many has T5_FULL tokens
# Sampled uniformly: FLUX.1-dev's guidance is an input, and this stand-in paints well with any value.
GUIDANCE = (1.0, 5.0)

_WORDINGS = {
    "plain": ("{}.", "Draw {}.", "A picture of {}.", "Generate an image of {}."),
    "person": ("{}.", "A picture of {}."),
    "white": ("{} alone on white.", "Only {} on a plain white background."),
    "line": ("A line drawing of {}.", "Black outlines on white: {}."),
    "negative": ("A negative of {}.", "{} in inverted colors."),
    "edge": ("An edge map of {}.", "The edges of {}, white on black."),
    "hed": ("Soft edges of {}.", "An HED edge map of {}."),
    "mlsd": ("The straight lines of {}.",),
    "depth": ("A depth map of {}.",),
    "normal": ("A normal map of {}.",),
    "sketch": ("A sketch of {}.",),
    "openpose": ("The pose of {}.", "A skeleton of {}."),
    "segmentation": ("{}, with {} segmented.", "{}, where {} is marked."),
    "detection": ("{}, with a box around {}.", "{}, where {} is detected."),
}
_STYLES = ("plain",) * 5 + tuple(_WORDINGS)
# Styles drawn from a scene; all others are targets of tasks.
_PAINTERS: dict[str, Callable[[Scene], np.ndarray]] = {
    "line": draw.outline_drawing,
    "negative": draw.inverted,
    "plain": draw.paint,
}


def pool_picture(number: int, seed: int = 0) -> tuple[Image.Image, str, Scene, str]:
    """Return a picture of the pool, its style, its scene, and a description of what is marked in it."""
    rng = np.random.default_rng([seed, number])
    style = _STYLES[number % len(_STYLES)]
    if style in _PAINTERS:
        scene = random_scene(rng, int(rng.integers(1, 5)), lambda source: draw_triple(source, "train"), PAINTED)
        return Image.fromarray(_PAINTERS[style](scene)), style, scene, ""
    task = make_task({"white": "extract", "person": "openpose"}.get(style, style), rng, "train", PAINTED)
    if style == "person":
        return task.references[0], style, task.before[0], ""
    scene = task.after or task.before[0]
    assert task.target is not None
    if style == "white":
        thing = scene.objects[0]
        return task.target, style, scene, f"a {thing.size} {thing.color} {thing.shape} at the {thing.place}"
    marked = f"the {describe(rng, task.subject, scene).words()}" if task.subject else ""
    return task.target, style, scene, marked


def pool_prompt(style: str, scene: Scene, marked: str, rng: np.random.Generator) -> str:
    """Return a prompt for a picture of the pool."""
    wording = _WORDINGS[style][int(rng.integers(len(_WORDINGS[style])))]
    return wording.format(marked) if style == "white" else wording.format(caption(scene, rng), marked)


def latent_pool(
    file: Path, vae: AutoencoderKL, latent_format: LatentFormat, device: torch.device | str, count: int = POOL
) -> Tensor:
    """Return bfloat16 latents (count, 16, h, w) of the pool's pictures, scaled as the DiT expects; saved in a file."""
    if file.is_file():
        return read_saved(file, lambda file: torch.load(file, weights_only=True))
    kept = []
    for start in range(0, count, _ENCODED):
        shown = uint8_batch([pool_picture(number)[0] for number in range(start, min(start + _ENCODED, count))])
        with torch.no_grad():
            z = vae.encode(pixels(shown, device)).latent_dist.mode()
        kept.append(latent_format.to_model(z).to("cpu", torch.bfloat16))
    with atomic_file(file) as out:
        torch.save(torch.cat(kept), out)
    return torch.cat(kept)


@dataclass(frozen=True)
class PromptedLatents:
    """Draws indices (B,) into the pool, T5 ids (B, L), CLIP ids (B, M), noise (B, C, h, w), normal levels (B,), guidance."""

    clip_tokenizer: PreTrainedTokenizerBase
    t5_tokenizer: PreTrainedTokenizerBase
    pool: int
    batch: int

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        full = rng.integers(FULL_EVERY) == 0
        numbers = rng.integers(self.pool, size=max(1, self.batch // 4) if full else self.batch)
        prompts = [pool_prompt(*pool_picture(int(number))[1:], rng) for number in numbers]
        t5_ids, clip_ids = self.ids(prompts, T5_FULL if full else T5_SHORT)
        noise = rng.standard_normal((len(numbers), LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE), np.float32)
        level = rng.standard_normal(len(numbers), np.float32)
        guidance = float(rng.uniform(*GUIDANCE))
        return torch.from_numpy(numbers), t5_ids, clip_ids, torch.from_numpy(noise), torch.from_numpy(level), guidance

    def ids(self, prompts: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Tokenize prompts for FLUX, padded and unmasked for T5.

        CLIP is causal and pools at the first end token, so padding after it has no effect.
        """
        cut: dict[str, object] = {"truncation": True, "return_tensors": "pt"}
        t5_ids = self.t5_tokenizer(prompts, max_length=length, padding="max_length", **cut)["input_ids"]
        return t5_ids, self.clip_tokenizer(prompts, max_length=77, padding=True, **cut)["input_ids"]


class FluxObjective(Objective):
    """Flow matching on latents; CLIP, T5 and the DiT train together.

    Args:
        clip_tokenizer, t5_tokenizer: tokenizers of the stand-ins.
        latents: from `latent_pool`.
        latent_format: latent format of the VAE's stand-in.
        batch: batch size.
        device: device to train on.
    """

    ends = ("embed", "shared", "relative_attention_bias", "dit.transformer.proj_out")

    def __init__(
        self,
        clip_tokenizer: PreTrainedTokenizerBase,
        t5_tokenizer: PreTrainedTokenizerBase,
        latents: Tensor,
        latent_format: LatentFormat,
        batch: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.clip = make_clip(len(clip_tokenizer), clip_tokenizer.bos_token_id, clip_tokenizer.eos_token_id)
        self.t5 = make_t5(len(t5_tokenizer))
        self.dit = DiT(make_flux(), latent_format)
        self.source = PromptedLatents(clip_tokenizer, t5_tokenizer, len(latents), batch)
        self.latents, self.device = latents.to(device), device
        self.to(device)

    def condition(self, t5_ids: Tensor, clip_ids: Tensor) -> Condition:
        """Return the condition: T5's tokens and CLIP's pooled prompt."""
        pooled = self.clip(input_ids=clip_ids.to(self.device)).pooler_output
        return Condition(self.t5(input_ids=t5_ids.to(self.device)).last_hidden_state, pooled)

    def loss(self, drawn: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]) -> tuple[Tensor, dict[str, Tensor]]:
        numbers, t5_ids, clip_ids, noise, level, guidance = drawn
        latent, noise = self.latents[numbers.to(self.device)].float(), noise.to(self.device)
        sigma = self.dit.shift.apply(level.to(self.device).sigmoid(), self.dit.latent_format.token_count(latent.shape))
        with fast_math(self.device):
            condition = self.condition(t5_ids, clip_ids)
            noisy = flow.add_noise(latent, noise, sigma[:, None, None, None])
            predicted = self.dit.velocity(noisy, sigma, condition, guidance)
        return ((predicted.float() - (noise - latent)) ** 2).mean(), {}
