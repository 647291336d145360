"""FLUX's stand-in with its CLIP and T5: text to image over the world, in every style that its pictures come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ....uniworld_core import flow
from ....uniworld_core.condition import Condition
from ....uniworld_core.dit import DiT, token_count
from ....uniworld_core.latents import LatentFormat
from .. import draw
from ..prompts import caption, describe
from ..split import draw_triple
from ..tasks import make_task
from ..world import Scene, random_scene
from .fit import fast_math, pixels
from .parts import SIDE, make_clip, make_flux, make_t5

BATCH = 64
POOL = 65536  # pictures whose latents are kept; each gets other words every time
T5_SHORT, T5_FULL = 48, 256  # tokens; the second is what the published programs pad to
FULL_EVERY = 16  # batches
GUIDANCE = (
    1.0,
    5.0,
)  # drawn evenly: FLUX.1-dev's guidance is a number it is told, and this stand-in paints well at any

_STYLES = (
    "plain",
    "plain",
    "plain",
    "plain",
    "white",
    "line",
    "negative",
    "edge",
    "depth",
    "segmentation",
    "detection",
)
_WORDINGS = {
    "plain": ("{}.", "Draw {}.", "A picture of {}.", "Generate an image of {}."),
    "white": ("{} alone on white.", "Only {} on a plain white background."),
    "line": ("A line drawing of {}.", "Black outlines on white: {}."),
    "negative": ("A negative of {}.", "{} in inverted colors."),
    "edge": ("An edge map of {}.", "The edges of {}, white on black."),
    "depth": ("A depth map of {}.",),
    "segmentation": ("{}, with {} segmented.", "{}, where {} is marked."),
    "detection": ("{}, with a box around {}.", "{}, where {} is detected."),
}


def picture_of(number: int, seed: int = 0) -> tuple[Image.Image, str, Scene, str]:
    """The picture of that number of the pool: itself, its style, its scene, and words for what is marked in it."""
    rng = np.random.default_rng([seed, number])
    style = _STYLES[number % len(_STYLES)]
    if style in ("segmentation", "detection", "depth"):
        task = make_task(style, rng, "train")
        assert task.target is not None
        marked = f"the {describe(rng, task.subject, task.before[0]).words()}" if task.subject else ""
        return task.target, style, task.before[0], marked
    if style == "white":
        task = make_task("extract", rng, "train")
        assert task.after is not None
        thing = task.after.objects[0]
        return (
            draw.draw(task.after),
            style,
            task.after,
            f"a {thing.size} {thing.colour} {thing.shape} at the {thing.place}",
        )
    scene = random_scene(rng, int(rng.integers(1, 5)), lambda source: draw_triple(source, "train"), SIDE)
    painters: dict[str, Any] = {"line": draw.outline_drawing, "negative": draw.inverted, "edge": draw.edge_map}
    if style in painters:
        return Image.fromarray(painters[style](scene)), style, scene, ""
    return draw.draw(scene), style, scene, ""


def words_for(style: str, scene: Scene, marked: str, rng: np.random.Generator) -> str:
    """A prompt for a picture of the pool."""
    wording = _WORDINGS[style][int(rng.integers(len(_WORDINGS[style])))]
    return wording.format(marked) if style == "white" else wording.format(caption(scene, rng), marked)


def pool(file: Path, vae: Any, latent_format: LatentFormat, device: torch.device | str, count: int = POOL) -> Tensor:
    """Latents (count, 16, h, w) of the pool's pictures on the DiT's side, bfloat16, computed once and kept in a file."""
    if file.is_file():
        return torch.load(file, weights_only=True)
    kept = []
    for start in range(0, count, BATCH):
        shown = [np.asarray(picture_of(number)[0]) for number in range(start, min(start + BATCH, count))]
        with torch.no_grad():
            z = vae.encode(pixels(shown, device)).latent_dist.mode()
        kept.append(latent_format.to_dit(z).to("cpu", torch.bfloat16))
    beside = file.with_suffix(".partial")
    torch.save(torch.cat(kept), beside)
    beside.replace(file)
    return torch.cat(kept)


class Painting(nn.Module):
    """The training objective: flow matching on the latents, CLIP, T5 and the DiT together.

    Args:
        clip_tokenizer, t5_tokenizer: the stand-ins'.
        latents: from `pool`.
        latent_format: of the VAE's stand-in.
    """

    def __init__(
        self,
        clip_tokenizer: Any,
        t5_tokenizer: Any,
        latents: Tensor,
        latent_format: LatentFormat,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.clip: Any = make_clip(len(clip_tokenizer), clip_tokenizer.bos_token_id, clip_tokenizer.eos_token_id)
        self.t5: Any = make_t5(len(t5_tokenizer))
        self.dit = DiT(make_flux(), latent_format)
        self.tokenizers, self.latents, self.device = (clip_tokenizer, t5_tokenizer), latents, device
        self.to(device)

    def condition(self, prompts: list[str], length: int) -> Condition:
        """The prompts as FLUX takes them: T5's tokens, padded and unmasked, and CLIP's pooled prompt."""
        clip_tokenizer, t5_tokenizer = self.tokenizers
        padded: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = t5_tokenizer(prompts, max_length=length, **padded)["input_ids"].to(self.device)
        # CLIP attends backwards only and pools at the first end: what is padded behind it changes nothing.
        pooled_ids = clip_tokenizer(prompts, max_length=77, truncation=True, padding=True, return_tensors="pt")[
            "input_ids"
        ]
        pooled = self.clip(input_ids=pooled_ids.to(self.device)).pooler_output
        return Condition(self.t5(input_ids=ids).last_hidden_state, pooled)

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        full = rng.integers(FULL_EVERY) == 0
        numbers = rng.integers(len(self.latents), size=BATCH // 4 if full else BATCH)
        prompts = []
        for number in numbers:
            _, style, scene, marked = picture_of(int(number))
            prompts.append(words_for(style, scene, marked, rng))
        latent = self.latents[torch.from_numpy(numbers)].to(self.device).float()
        seeded = torch.Generator("cpu").manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(latent.shape, generator=seeded).to(self.device)
        level = torch.randn(len(latent), generator=seeded).to(self.device)
        sigma = flow.shift(level.sigmoid(), flow.mu(token_count(SIDE, SIDE)))
        guidance = float(rng.uniform(*GUIDANCE))
        with fast_math(self.device):
            condition = self.condition(prompts, T5_FULL if full else T5_SHORT)
            noisy = flow.add_noise(latent, noise, sigma[:, None, None, None])
            predicted = self.dit.velocity(noisy, sigma, condition, guidance)
        return ((predicted.float() - (noise - latent)) ** 2).mean(), {}
