"""Validation: a run's prompts painted with the weights so far, side by side on one contact sheet."""

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

# Pixels of the sheet: the longest side of a picture on it, and the space round each.
_CELL, _GAP, _TEXT = 256, 8, 16


@dataclass(frozen=True)
class SheetRow:
    """One line of a contact sheet: what was asked, with which pictures, and what was painted."""

    prompt: str
    references: tuple[Image.Image, ...]
    painted: Image.Image


@dataclass(frozen=True)
class _Blank:
    """Stands for the target that a validation prompt does not have."""

    side: int
    name: str = "nothing"

    def read(self) -> bytes:
        return b""

    def open(self) -> Image.Image:
        return Image.new("RGB", (self.side, self.side))

    def size(self) -> tuple[int, int]:
        return self.side, self.side


class Validator:
    """The prompts of a run, read once by the frozen parts; each sheet then takes the DiT and the VAE alone."""

    def __init__(self, encoder: Encoder, settings: ValidationSettings) -> None:
        """Read the prompts and their pictures; without prompts nothing is read, painted or written.

        Raises:
            UniWorldError: a prompt cannot be used; it is named.
        """
        self.settings, self._encoder = settings, encoder
        self._encoded = _read(encoder, settings) if settings.prompts else []

    def paint(self, tower: DenoiseTower) -> list[torch.Tensor]:
        """The VAE's own latents (1, C, size/8, size/8) of the prompts. Where the DiT is spread, every process must call
        it.
        """
        settings, dtype = self.settings, self._encoder.model.dtype
        device, size = tower.dit.device, Size(settings.size, settings.size)
        latents = []
        # As in training: what trains is in float32 among bfloat16, and autocast brings them together.
        with torch.no_grad(), autocast(device, dtype):
            for encoded in self._encoded:
                # A batch has random numbers with it; none is used here, and the chance of 1 keeps T5.
                draws = replace(Draws.of(0, [0], encoded.latent.shape), t5_dropout_u=torch.ones(1))
                batch = tower.collate([encoded], draws)
                condition = tower.condition(batch.to(device))
                latents.append(paint(tower.dit, condition, size, [settings.seed], settings.steps, settings.guidance))
        return latents

    def write(self, latents: Sequence[torch.Tensor], to: Path) -> None:
        """Write the contact sheet of painted latents as a PNG, whole or not at all; none if nothing was painted."""
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
    """One line for each row: its references, then what was painted, with the prompt above."""
    columns = max(len(row.references) for row in rows) + 1
    height = _CELL + _TEXT + 2 * _GAP
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * height
        draw.text((_GAP, top + _GAP // 2), fit_text(draw, row.prompt, sheet.width - 2 * _GAP), fill="black")
        # What was painted stands in the last column, whatever the number of references.
        for column, picture in [*enumerate(row.references), (columns - 1, row.painted)]:
            small = _scaled(picture)
            left = _GAP + column * (_CELL + _GAP) + (_CELL - small.width) // 2
            sheet.paste(small, (left, top + _TEXT + _GAP + (_CELL - small.height) // 2))
    return sheet


def _scaled(picture: Image.Image) -> Image.Image:
    scale = _CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Small pictures show their own pixels.
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _read(encoder: Encoder, settings: ValidationSettings) -> list[EncodedSample]:
    # The target is not used, and nothing is weighted: only what the condition is made of.
    blank = _Blank(settings.size)
    samples = [
        Sample(_called(prompt), prompt.prompt, tuple(map(_picture, prompt.images)), blank, False)
        for prompt in settings.prompts
    ]
    # What this loads then goes: a run on cached data has no room for the VLM.
    with encoder.model.parts.temporary():
        read = encoder(samples)
    for item in read:
        if isinstance(item, BadSample):
            raise UniWorldError(f"{item.key} cannot be painted: {item.reason}")
    return [item for item in read if isinstance(item, EncodedSample)]


def _called(prompt: ValidationPrompt) -> str:
    return f"The validation prompt {prompt.prompt!r}"


def _picture(name: str) -> FilePicture:
    return FilePicture(Path(name), "`images` of validation.prompts; paths begin where the command is run")
