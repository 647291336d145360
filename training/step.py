"""The training step: the flow-matching loss of a batch (published: train_denoiser.py; DESIGN fact 9).

Shapes: B batch, L text tokens, C latent channels, h, w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..uniworld_core import flow
from ..uniworld_core.condition import Condition, join_rows, pad_left, project
from ..uniworld_core.dit import PACK, DiT
from ..uniworld_core.projectors import Projectors, input_layer
from .batch import Draws, Encoded


@dataclass(frozen=True)
class StepSettings:
    """What the step does with a batch.

    Attributes:
        use_siglip: splice the references' SigLIP features in; the published stage 1 does not.
        t5_drop: share of samples, drawn anew each time, that go without their T5 tokens.
        guidance: FLUX's embedded guidance.
    """

    use_siglip: bool = True
    t5_drop: float = 1.0
    guidance: float = 1.0


class Trainee(nn.Module):
    """The part of UniWorld that trains: projectors and DiT, from what the frozen parts computed to losses."""

    def __init__(self, projectors: Projectors, dit: DiT, settings: StepSettings) -> None:
        super().__init__()
        self.projectors, self.dit, self.settings = projectors, dit, settings

    def condition(self, batch: Sequence[Encoded], chance_B: Tensor) -> Condition:
        """The condition of a batch, its padding masked."""
        hidden_BLD, mask_BL = pad_left([item.hidden for item in batch])
        ends_BL = pad_left([item.ends[:, None] for item in batch])[0][..., 0]
        features = [self._features(item) for item in batch]
        tokens_BLD, mask_BL = project(self.projectors, hidden_BLD, mask_BL, ends_BL, features)
        if any(item.t5 is not None for item in batch):
            kept = [
                None if chance < self.settings.t5_drop else item.t5 for item, chance in zip(batch, chance_B.tolist())
            ]
            tokens_BLD, mask_BL = join_rows(kept, tokens_BLD, mask_BL)
        return Condition(tokens_BLD, torch.stack([item.pooled for item in batch]), mask_BL)

    def forward(self, batch: Sequence[Encoded], draws: Draws) -> Tensor:
        """Losses (B,), float32: mean over the latent of weight · (prediction − (noise − latent))².

        σ = shift(sigmoid(level), mu of the packed tokens). The prediction is for latents of one size.

        Raises:
            ValueError: latents of different sizes.
        """
        latent_BChw = stack_latents(batch)
        _, _, h, w = latent_BChw.shape
        sigma_B = flow.shift(draws.level.sigmoid(), flow.mu(h // PACK * (w // PACK)))
        noisy_BChw = flow.add_noise(latent_BChw, draws.noise, sigma_B[:, None, None, None])
        condition = self.condition(batch, draws.chance)
        predicted_BChw = self.dit.velocity(noisy_BChw, sigma_B, condition, self.settings.guidance)
        error_BChw = (predicted_BChw - (draws.noise - latent_BChw)) ** 2
        ones_hw = latent_BChw.new_ones(h, w)
        weight_Bhw = torch.stack([ones_hw if item.weight is None else item.weight for item in batch])
        return (weight_Bhw[:, None] * error_BChw).mean(dim=(1, 2, 3)) + self._touch_siglip(batch)

    def _features(self, item: Encoded) -> list[Tensor | None]:
        if self.settings.use_siglip and item.features:
            return list(item.features)
        return [None] * int(item.ends.sum())

    def _touch_siglip(self, batch: Sequence[Encoded]) -> Tensor | float:
        # A batch without references must still give its projector gradients, of zero: data parallel waits for them.
        layer = input_layer(self.projectors.siglip_projector)
        if not self.settings.use_siglip or not layer.weight.requires_grad or any(item.features for item in batch):
            return 0.0
        nothing = torch.zeros(0, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)
        return self.projectors.siglip_projector(nothing).float().sum()


def stack_latents(batch: Sequence[Encoded]) -> Tensor:
    """Target latents (B, C, h, w) of a batch. Raises ValueError if they are of different sizes."""
    shapes = {tuple(item.latent.shape) for item in batch}
    if len(shapes) != 1:
        raise ValueError(f"A batch holds latents of shapes {sorted(shapes)}; batches are made of one size each.")
    return torch.stack([item.latent for item in batch]).float()
