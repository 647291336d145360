"""SigLIP's stand-in, trained with the sigmoid loss on pictures and captions (arXiv 2303.15343).

In addition, every token must reconstruct its patch and predict its position, in place of SigLIP 2's dense objectives
(arXiv 2502.14786). The DiT gives these tokens no positions, so a patch's position must be in its features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tasks.prompts import caption
from ..tasks.split import draw_triple
from ..tasks.tasks import make_task
from ..world.draw import draw
from ..world.scene import Scene, random_scene
from .fit import Objective, fast_math, pixels, psnr, uint8_batch
from .parts import PATCH, POOLED, SIGLIP_SIDE, SIGLIP_WIDTH, make_clip, make_siglip
from .vae import pictures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The sigmoid loss's first temperature and bias (arXiv 2303.15343, section 3.2).
_TEMPERATURE, _BIAS = 2.3, -10.0
DENSE_WEIGHT, PLACE_WEIGHT = 4.0, 0.2
PEOPLE_SHARE = 0.1
_TOKENS = (SIGLIP_SIDE // PATCH) ** 2


@dataclass(frozen=True)
class CaptionedPictures:
    """Draws (B + B/2, H, W, 3) bytes, the first B from scenes, and the token ids (B, L) of the scenes' captions."""

    tokenizer: PreTrainedTokenizerBase
    batch: int

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        scenes = [_scene(rng) for _ in range(self.batch)]
        shown = [*(draw(scene) for scene in scenes), *pictures(rng, self.batch // 2, SIGLIP_SIDE)]
        captions = self.tokenizer([caption(scene, rng) for scene in scenes], padding=True, return_tensors="pt")
        return uint8_batch(shown), captions["input_ids"]


class SigLIPObjective(Objective):
    """SigLIP's vision tower, with a text encoder and dense heads that are discarded after training.

    Args:
        tokenizer: tokenizer of CLIP's stand-in.
        batch: batch size.
        device: device to train on.
    """

    ends = ("embed", "probe", "to_text", "to_patch", "to_place")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, batch: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.siglip = make_siglip()
        self.text = make_clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
        self.to_text = nn.Linear(SIGLIP_WIDTH, POOLED)
        self.to_patch = nn.Linear(SIGLIP_WIDTH, 3 * PATCH * PATCH)
        self.to_place = nn.Linear(SIGLIP_WIDTH, _TOKENS)
        self.temperature = nn.Parameter(torch.tensor(_TEMPERATURE))
        self.bias = nn.Parameter(torch.tensor(_BIAS))
        self.source, self.device = CaptionedPictures(tokenizer, batch), device
        self.to(device)

    def loss(self, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x, ids = pixels(drawn[0], self.device), drawn[1].to(self.device)
        with fast_math(self.device):
            seen = self.siglip(pixel_values=x)
            texts = self.text(input_ids=ids).pooler_output
            images = self.to_text(seen.pooler_output[: len(ids)])
            patches = self.to_patch(seen.last_hidden_state)
            places = self.to_place(seen.last_hidden_state)
        images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        logits = images @ texts.T * self.temperature.exp() + self.bias
        pairs = torch.eye(len(ids), device=self.device)
        match = -F.logsigmoid(logits * (2 * pairs - 1)).sum() / len(ids)
        targets = _patches(x)
        dense = F.l1_loss(patches.float(), targets)
        numbers = torch.arange(_TOKENS, device=self.device).expand(len(x), -1)
        place = F.cross_entropy(places.float().flatten(0, 1), numbers.flatten())
        right = (logits.argmax(dim=1) == pairs.argmax(dim=1)).float().mean()
        return match + DENSE_WEIGHT * dense + PLACE_WEIGHT * place, {
            "matched": right,
            "psnr": psnr(patches, targets),
            "place": place,
        }


def _scene(rng: np.random.Generator) -> Scene:
    if rng.random() < PEOPLE_SHARE:
        return make_task("openpose", rng, "train", SIGLIP_SIDE).before[0]
    return random_scene(rng, int(rng.integers(1, 5)), lambda source: draw_triple(source, "train"), SIGLIP_SIDE)


def _patches(x_BCHW: Tensor) -> Tensor:
    """Return patches (B, tokens, 3 · PATCH²), row by row like SigLIP's tokens."""
    return F.unfold(x_BCHW, PATCH, stride=PATCH).transpose(1, 2)
