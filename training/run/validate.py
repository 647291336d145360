"""Validation: paint a run's prompts with the current weights onto a contact sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.images.pictures import to_bytes
from ...uniworld_core.images.sizes import Size
from ...uniworld_core.sampling.sampler import paint
from ..config.settings import ValidationPrompt, ValidationSettings
from ..data.encode import Encoder
from ..data.samples import FilePicture, Sample
from ..engine.precision import autocast
from ..files import write_atomic
from ..objective.batch import BadSample, Draws, EncodedSample
from ..objective.step import DenoiseTower
from .sheet_text import fit_text

# Pixels: longest side of a picture on the sheet, gap around it, height of a text line.
_CELL, _GAP, _TEXT = 256, 8, 16


@dataclass(frozen=True)
class SheetRow:
    """One row of a contact sheet: the prompt, its reference pictures, and the painted picture."""

    prompt: str
    references: tuple[Image.Image, ...]
    painted: Image.Image


@dataclass(frozen=True)
class _NoTarget:
    """A placeholder for the target, which a validation prompt does not have."""

    side: int
    name: str = "no target"

    def read(self) -> bytes:
        return b""

    def open(self) -> Image.Image:
        return Image.new("RGB", (self.side, self.side))

    def size(self) -> tuple[int, int]:
        return self.side, self.side


class Validator:
    """The validation prompts of a run. The frozen parts encode them once; a sheet then needs only DiT and VAE."""

    def __init__(self, encoder: Encoder, settings: ValidationSettings) -> None:
        """Encode the prompts and their pictures. Without prompts nothing is loaded, painted or written.

        Raises:
            UniWorldError: a prompt is invalid; the message names it.
        """
        self.settings, self._encoder = settings, encoder
        self._encoded = _encode_prompts(encoder, settings) if settings.prompts else []

    def paint(self, tower: DenoiseTower) -> list[torch.Tensor]:
        """Paint the prompts. Return unscaled VAE latents, (1, C, size/8, size/8) each. Collective if the DiT is sharded."""
        settings, dtype = self.settings, self._encoder.model.dtype
        device, size = tower.dit.device, Size(settings.size, settings.size)
        latents = []
        # Autocast as in training, because trained parameters are float32 and frozen ones may be bfloat16.
        with torch.no_grad(), autocast(device, dtype):
            for encoded in self._encoded:
                # A batch needs random numbers. Painting uses none of them, and t5_dropout_u = 1 keeps T5 tokens.
                draws = replace(Draws.of(0, [0], encoded.latent.shape), t5_dropout_u=torch.ones(1))
                batch = tower.collate([encoded], draws)
                condition = tower.condition(batch.to(device))
                latents.append(paint(tower.dit, condition, size, [settings.seed], settings.steps, settings.guidance))
        return latents

    def write(self, latents: Sequence[torch.Tensor], to: Path) -> None:
        """Write the contact sheet of painted latents as a PNG, atomically; without latents nothing is written."""
        if not latents:
            return
        rows = [
            SheetRow(prompt.prompt, tuple(_picture(name).open() for name in prompt.images), self._decode(latent))
            for prompt, latent in zip(self.settings.prompts, latents, strict=True)
        ]
        picture = io.BytesIO()
        contact_sheet(rows).save(picture, format="PNG")
        write_atomic(to, picture.getvalue())

    def _decode(self, latent: torch.Tensor) -> Image.Image:
        return Image.fromarray(to_bytes(self._encoder.vae.decode(latent))[0].cpu().numpy())


def contact_sheet(rows: Sequence[SheetRow]) -> Image.Image:
    """Draw a contact sheet: for each row the prompt, and below it the references and the painted picture."""
    columns = max(len(row.references) for row in rows) + 1
    height = _CELL + _TEXT + 2 * _GAP
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * height
        draw.text((_GAP, top + _GAP // 2), fit_text(draw, row.prompt, sheet.width - 2 * _GAP), fill="black")
        # The painted picture is in the last column, whatever the number of references.
        for column, picture in [*enumerate(row.references), (columns - 1, row.painted)]:
            small = _scaled(picture)
            left = _GAP + column * (_CELL + _GAP) + (_CELL - small.width) // 2
            sheet.paste(small, (left, top + _TEXT + _GAP + (_CELL - small.height) // 2))
    return sheet


def _scaled(picture: Image.Image) -> Image.Image:
    scale = _CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Small pictures are enlarged without smoothing, to show their pixels.
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _encode_prompts(encoder: Encoder, settings: ValidationSettings) -> list[EncodedSample]:
    # Only the condition is needed: the target is a placeholder, and there is no edit weight.
    target = _NoTarget(settings.size)
    samples = [
        Sample(_label(prompt), prompt.prompt, tuple(map(_picture, prompt.images)), target, False)
        for prompt in settings.prompts
    ]
    # Parts that this loads are released afterwards: a run on cached data may have no memory for the VLM.
    with encoder.model.parts.temporary():
        encoded = encoder(samples)
    for item in encoded:
        if isinstance(item, BadSample):
            raise UniWorldError(f"{item.key} cannot be painted: {item.reason}")
    return [item for item in encoded if isinstance(item, EncodedSample)]


def _label(prompt: ValidationPrompt) -> str:
    return f"The validation prompt {prompt.prompt!r}"


def _picture(name: str) -> FilePicture:
    return FilePicture(Path(name), "`images` in validation.prompts; paths are relative to the working directory")
