"""The training step: the flow-matching loss of a batch (published: train_denoiser.py).

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
    """Settings of the training step.

    Attributes:
        use_siglip: splice in the references' SigLIP features; the published stage 1 does not.
        t5_drop: fraction of samples whose T5 tokens are dropped, sampled at each step.
        guidance: FLUX's embedded guidance.
    """

    use_siglip: bool = True
    t5_drop: float = 1.0
    guidance: float = 1.0


class DenoiseTower(nn.Module):
    """The trainable part of UniWorld, projectors and DiT: from the frozen parts' outputs to losses.

    Named after the `denoise_tower` of the published checkpoint.
    """

    def __init__(self, projectors: Projectors, dit: DiT, settings: StepSettings) -> None:
        super().__init__()
        self.projectors, self.dit, self.settings = projectors, dit, settings

    def collate(self, items: Sequence[EncodedSample], draws: Draws) -> Batch:
        """Collate samples with their random numbers. Raises UniWorldError if the latents differ in size."""
        width = self.projectors.siglip_projector.width if self.settings.use_siglip else None
        return Batch.of(items, draws, width, self.settings.t5_drop)

    def condition(self, batch: Batch) -> Condition:
        """Return the condition of a batch, with its padding masked.

        Features go through their projector even if a batch has no reference: data parallelism needs a gradient, if only
        of zeros, for every trained parameter in every process.
        """
        rows_ND = project_rows(self.projectors, batch.hidden, batch.features)
        tokens_BLD, mask_BL = gather_rows(rows_ND, batch.index)
        if batch.t5 is not None:
            tokens_BLD, mask_BL = join_rows(batch.t5, tokens_BLD, mask_BL)
        return Condition(tokens_BLD, batch.pooled, mask_BL)

    def forward(self, batch: Batch) -> Tensor:
        """Return losses (B,), float32: the mean over the latent of weight · (prediction − (noise − latent))².

        σ = sigmoid(level), shifted for the packed tokens.
        """
        tokens = self.dit.latent_format.token_count(batch.latent.shape)
        sigma_B = self.dit.shift.apply(batch.level.sigmoid(), tokens)
        noisy_BChw = flow.add_noise(batch.latent, batch.noise, sigma_B[:, None, None, None])
        predicted_BChw = self.dit.velocity(noisy_BChw, sigma_B, self.condition(batch), self.settings.guidance)
        error_BChw = (predicted_BChw - (batch.noise - batch.latent)) ** 2
        return (batch.weight[:, None] * error_BChw).mean(dim=(1, 2, 3))
