"""Encode samples with the frozen parts: the outputs of VLM, SigLIP, VAE, CLIP and T5 that training needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...uniworld_core import UniWorld
from ...uniworld_core.backbones.flux_text import T5_LENGTH
from ...uniworld_core.backbones.flux_vae import VAE
from ...uniworld_core.editing.fitting import fit_before
from ...uniworld_core.editing.masks import METHODS, MIN_EDITED_SHARE, edit_mask
from ...uniworld_core.editing.weights import WEIGHT_FUNCTION, edit_weight
from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.images.pictures import to_image
from ...uniworld_core.images.sizes import DEFAULT_AREA, DEFAULT_RATIOS, size_by_aspect
from ...uniworld_core.loading.parts import NetworkPart
from ...uniworld_core.loading.settings import read_json
from ...uniworld_core.prompts.reference import make_references
from ...uniworld_core.prompts.text import check_prompt
from ..objective.batch import BadSample, EncodedSample
from .samples import Sample

# Values of each tensor in the fingerprint: enough to distinguish checkpoints, few enough to read quickly.
FINGERPRINT_VALUES = 64
# Increment when the encoding of a sample changes, so that old caches become invalid.
_FINGERPRINT_VERSION = 1


@dataclass(frozen=True)
class EncodeSettings:
    """How samples are encoded. Names and values are part of the cache's fingerprint.

    Attributes:
        area: approximate area of the painted picture in pixels; its aspect ratio is the nearest of `ratios`.
        ratios: a name in `sizes.RATIO_SETS`.
        use_siglip: compute the references' SigLIP features.
        use_t5: compute T5 tokens of the prompt, and pool the prompt with CLIP instead of the empty string.
        t5_length: number of T5 tokens.
        mask_method: how the edited region is found, a name in `masks.METHODS`.
        weight: the edit weight, a name in `weights.WEIGHT_FUNCTIONS`, or "none" for 1 everywhere.
    """

    area: int = DEFAULT_AREA
    ratios: str = DEFAULT_RATIOS
    use_siglip: bool = True
    use_t5: bool = False
    t5_length: int = T5_LENGTH
    mask_method: str = METHODS[0]
    weight: str = WEIGHT_FUNCTION


class Encoder:
    """Encodes samples into the inputs of `DenoiseTower`. The VAE computes in float32, as published (`vae_fp32`)."""

    def __init__(self, model: UniWorld, settings: EncodeSettings) -> None:
        self.model, self.settings = model, settings

    @property
    def vae(self) -> VAE:
        return self.model.part("vae", torch.float32)

    @cached_property
    def _empty_pooled(self) -> torch.Tensor:
        return self.model.text.clip.pool([""])[0].cpu()

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything that determines the result: settings, configurations and weights of the frozen parts.

        Projectors and DiT are left out because they train, so one cache serves both stages.
        """
        settings = [_FINGERPRINT_VERSION, asdict(self.settings), str(self.model.dtype)]
        return self._digest(settings, self.settings.use_siglip)

    def frozen_fingerprint(self, use_siglip: bool) -> str:
        """Return a hex digest of the frozen parts, independent of the settings, with or without SigLIP."""
        return self._digest([], use_siglip)

    def _digest(self, settings: Sequence[object], use_siglip: bool) -> str:
        model = self.model
        assert model.flux_folder is not None
        parts = ["vlm", "vae", "clip"]
        files = [model.checkpoint / "preprocessor_config.json", model.flux_folder / "vae" / "config.json"]
        if self.settings.use_t5:
            parts.append("t5")
        if use_siglip and model.siglip_folder is not None:
            parts.append("siglip")
            files.append(model.siglip_folder / "preprocessor_config.json")
        digest = hashlib.sha256()
        digest.update(json.dumps([*settings, [read_json(file) for file in files]], sort_keys=True).encode())
        for folder in (model.checkpoint, model.flux_folder / "tokenizer", model.flux_folder / "tokenizer_2"):
            _digest_tokenizer(digest, folder)
        for part in parts:
            _digest_weights(digest, model.parts.network(part))
        return digest.hexdigest()[:32]

    def __call__(self, samples: Sequence[Sample]) -> list[EncodedSample | BadSample]:
        """Encode samples, in order; an invalid one is a `BadSample` in the result."""
        made: list[EncodedSample | BadSample | _OpenedSample] = [self._open(sample) for sample in samples]
        opened = [i for i, item in enumerate(made) if isinstance(item, _OpenedSample)]
        for i, item in zip(opened, self._with_weights([made[i] for i in opened])):  # type: ignore[misc]
            made[i] = item
        good = [i for i in opened if isinstance(made[i], _OpenedSample)]
        for i, encoded in zip(good, self._encode_or_reject([made[i] for i in good])):  # type: ignore[misc]
            made[i] = encoded
        return made  # type: ignore[return-value]

    def _open(self, sample: Sample) -> _OpenedSample | BadSample:
        """Open a sample's pictures and resize its target to the painted size."""
        try:
            references = [source.open() for source in sample.references]
            target = sample.target.open()
            size = size_by_aspect(target.height, target.width, self.settings.area, self.settings.ratios)
            # Stretched to the aspect ratio, as the published trainer does; at most a few per cent.
            target = target.resize((size.width, size.height), Image.Resampling.BICUBIC)
            check_prompt(sample.prompt)
            return _OpenedSample(sample, references, target)
        except (UniWorldError, OSError) as error:
            return BadSample(sample.key, str(error))

    def _with_weights(self, items: Sequence[_OpenedSample]) -> list[_OpenedSample | BadSample]:
        """Add edit weights, batched over samples of the same size and number of references."""
        weighed: list[_OpenedSample | BadSample] = list(items)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, item in enumerate(items):
            if item.sample.weighted and self.settings.weight != "none" and item.references:
                groups.setdefault((item.target.size, len(item.references)), []).append(i)
        for (_, count), indices in groups.items():
            after = to_image([items[i].target for i in indices])
            before = [
                torch.cat([fit_before(to_image([items[i].references[k]]), after[:1]) for i in indices])
                for k in range(count)
            ]
            mask = edit_mask(before, after, self.settings.mask_method)
            weights = edit_weight(mask.latent, self.settings.weight)
            for i, weight, share, too_small in zip(indices, weights, mask.share.tolist(), mask.too_small.tolist()):
                weighed[i] = _edit_too_small(items[i].sample, share) if too_small else replace(items[i], weight=weight)
        return weighed

    def _encode_or_reject(self, items: Sequence[_OpenedSample]) -> Sequence[EncodedSample | BadSample]:
        """Encode all at once, or one by one if one is rejected, for example for a prompt that is too long."""
        if not items:
            return []
        try:
            return self._encode(items)
        except UniWorldError as error:
            if len(items) == 1:
                return [BadSample(items[0].sample.key, str(error))]
            return [result for item in items for result in self._encode_or_reject([item])]

    @torch.no_grad()
    def _encode(self, items: Sequence[_OpenedSample]) -> list[EncodedSample]:
        model, settings = self.model, self.settings
        prompts = [item.sample.prompt for item in items]
        inputs = model.vlm.inputs(prompts, [item.references for item in items])
        hidden_BLD = model.vlm.hidden_states(inputs).cpu()
        ends_BL, mask_BL = (inputs.ids == model.vlm.config.tokens["vision_end_token_id"]).cpu(), inputs.mask.cpu()
        pooled = model.text.clip.pool(prompts).cpu() if settings.use_t5 else [self._empty_pooled] * len(prompts)
        t5 = model.text.t5.tokens(prompts, settings.t5_length).cpu() if settings.use_t5 else [None] * len(prompts)
        features = self._features(items)
        latents = self._latents([item.target for item in items])
        return [
            EncodedSample(
                key=item.sample.key,
                hidden=hidden_BLD[i][mask_BL[i]],
                ends=ends_BL[i][mask_BL[i]],
                features=features[i],
                pooled=pooled[i],
                t5=t5[i],
                latent=latents[i],
                weight=item.weight,
            )
            for i, item in enumerate(items)
        ]

    def _features(self, items: Sequence[_OpenedSample]) -> list[tuple[torch.Tensor, ...]]:
        pictures = [picture for item in items for picture in item.references]
        if not self.settings.use_siglip or not pictures:
            return [() for _ in items]
        made = iter(make_references(pictures, self.model.siglip))
        return [tuple(next(made).features.cpu() for _ in item.references) for item in items]  # type: ignore[union-attr]

    def _latents(self, targets: Sequence[Image.Image]) -> list[torch.Tensor]:
        # The mean of the VAE's distribution, not a sample: a picture has the same latent in every epoch, cached or not,
        # and the variance of FLUX's VAE is negligible.
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, target in enumerate(targets):
            by_size.setdefault(target.size, []).append(index)
        latents: dict[int, torch.Tensor] = {}
        for indices in by_size.values():
            z = self.vae.encode(to_image([targets[i] for i in indices]))
            latents.update(zip(indices, self.vae.latent_format.to_model(z).float().cpu()))
        return [latents[i] for i in range(len(targets))]


@dataclass(frozen=True)
class _OpenedSample:
    sample: Sample
    references: list[Image.Image]
    target: Image.Image
    weight: torch.Tensor | None = None


def _edit_too_small(sample: Sample, share: float) -> BadSample:
    return BadSample(
        sample.key,
        f"the edit covers {share:.5f} of the picture, less than {MIN_EDITED_SHARE}, so the target differs from its "
        "reference only by specks: remove the sample or fix the pair.",
    )


def _digest_tokenizer(digest: hashlib._Hash, folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model"):
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())


def _digest_weights(digest: hashlib._Hash, part: NetworkPart[Any]) -> None:
    """Add names, shapes, dtypes and the first values of every tensor of a part to the digest."""
    shards = part.shards
    names = sorted(part.in_network)
    # Read file by file for speed, but digested in order of names: the same weights in other shards are the same model.
    values = {name: row.flatten()[:FINGERPRINT_VALUES].float().clone() for name, row in shards.first_rows(names)}
    for name in names:
        digest.update(f"{name} {shards.shapes[name]} {shards.dtypes[name]}".encode())
        digest.update(values[name].numpy().tobytes())
