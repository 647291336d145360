"""The training step: the flow-matching loss of a batch (published: train_denoiser.py; DESIGN fact 9).

Shapes: B batch, L text tokens, C latent channels, h, w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...uniworld_core.backbones.flux_dit import DiT
from ...uniworld_core.families.uniworld_v1.condition import gather_rows, join_rows, project_rows
from ...uniworld_core.families.uniworld_v1.projectors import Projectors
from ...uniworld_core.sampling import flow
from ...uniworld_core.sampling.condition import Condition
from .batch import Batch, Draws, EncodedSample


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


class DenoiseTower(nn.Module):
    """The part of UniWorld that trains: projectors and DiT, from what the frozen parts computed to losses."""

    def __init__(self, projectors: Projectors, dit: DiT, settings: StepSettings) -> None:
        super().__init__()
        self.projectors, self.dit, self.settings = projectors, dit, settings

    def collate(self, items: Sequence[EncodedSample], draws: Draws) -> Batch:
        """Samples and their random numbers as this tower takes them. Raises UniWorldError for latents of two sizes."""
        width = self.projectors.siglip_projector.width if self.settings.use_siglip else None
        return Batch.of(items, draws, width, self.settings.t5_drop)

    def condition(self, batch: Batch) -> Condition:
        """The condition of a batch, its padding masked.

        Without a reference the features are none, and still go through their projector: what every process trains has
        gradients in every process, of zero if need be.
        """
        rows_ND = project_rows(self.projectors, batch.hidden, batch.features)
        tokens_BLD, mask_BL = gather_rows(rows_ND, batch.index)
        if batch.t5 is not None:
            tokens_BLD, mask_BL = join_rows(batch.t5, tokens_BLD, mask_BL)
        return Condition(tokens_BLD, batch.pooled, mask_BL)

    def forward(self, batch: Batch) -> Tensor:
        """Losses (B,), float32: mean over the latent of weight · (prediction − (noise − latent))².

        σ = sigmoid(level), shifted for the packed tokens.
        """
        tokens = self.dit.latent_format.token_count(batch.latent.shape)
        sigma_B = self.dit.shift.apply(batch.level.sigmoid(), tokens)
        noisy_BChw = flow.add_noise(batch.latent, batch.noise, sigma_B[:, None, None, None])
        predicted_BChw = self.dit.velocity(noisy_BChw, sigma_B, self.condition(batch), self.settings.guidance)
        error_BChw = (predicted_BChw - (batch.noise - batch.latent)) ** 2
        return (batch.weight[:, None] * error_BChw).mean(dim=(1, 2, 3))
