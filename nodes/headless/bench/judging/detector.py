"""GenEval's judge in this process: Mask2Former finds the objects, CLIP classifies their colors."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .....uniworld_core.errors import UniWorldError, brief
from .....uniworld_core.loading.vocabulary import clip_tokenizer
from ..scoring import geneval
from .ask import Ask
from .client import JudgeRejected
from .identity import detector_name, is_published_detector
from .instances import instances, padded
from .mmdet import open_mmdet
from .replies import JudgeReply

# Objects below the lowest threshold of the rules are not recorded.
_LEAST = 0.25
_SIDE = 224
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class DetectorJudge:
    """A judge that replies with the objects of a picture, as JSON.

    Args:
        detector: Mask2Former for instances of COCO's 80 classes: a folder in transformers' layout, or a file of mmdet.
        clip: folder of a CLIP, published: openai/clip-vit-large-patch14.
        device: torch's name of the device.

    Raises:
        UniWorldError: a model does not exist or does not fit.
    """

    def __init__(self, detector: Path, clip: Path, device: str) -> None:
        if importlib.util.find_spec("scipy") is None:
            raise UniWorldError("The detector needs the package scipy. Install it with: pip install 'uniworld[bench]'")
        from transformers import CLIPModel

        self.model = detector_name(detector, clip)
        self.identity = {"model": self.model, "server": "this process"}
        other = "The detector has other weights than the published one (mmdet), so its scores may differ."
        self.notes = [] if is_published_detector(self.model) else [other]
        self.omitted: list[str] = []
        try:
            self._device = torch.device(device)
            detector_net: Any = open_mmdet(detector) if detector.is_file() else _open_folder(detector)
            clip_net: Any = CLIPModel.from_pretrained(
                str(clip), local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
            )
            self._tokenizer = clip_tokenizer(clip)
            self._detector, self._clip = (net.to(self._device).eval() for net in (detector_net, clip_net))
        except UniWorldError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UniWorldError(f"The detector or CLIP cannot be loaded: {brief(error)}.") from error
        self._texts: dict[str, dict[str, Any]] = {}

    async def close(self) -> None:
        """Nothing is open."""

    async def reply(self, ask: Ask, about: JudgeReply) -> JudgeReply:
        """See `Judge.reply`."""
        text = await asyncio.to_thread(self._examine, ask)
        return replace(about, text=text, model=self.model, finish="stop", time=round(time.time(), 3))

    def _examine(self, ask: Ask) -> str:
        question = json.loads(ask.text)
        names = question["names"]
        if self._detector.config.num_labels != len(names):
            raise JudgeRejected(
                f"the detector has {self._detector.config.num_labels} classes, and the benchmark {len(names)}"
            )
        with Image.open(ask.pictures[0].path) as file:
            picture = file.convert("RGB")
        found = self._detect(picture, names)
        made: list[dict[str, Any]] = [
            {"name": one.name, "box": list(one.box), "score": round(one.score, 6)} for one in found
        ]
        for name in question["colors_of"]:
            places = [place for place, one in enumerate(found) if one.name == name]
            for place, color in zip(places, self._colors(picture, name, [found[place] for place in places])):
                made[place]["color"] = color
        return json.dumps(made)

    @torch.inference_mode()
    def _detect(self, picture: Image.Image, names: Sequence[str]) -> list[geneval.Detection]:
        shown = padded(picture)
        mask = torch.zeros(1, *shown.pixels.shape[-2:], dtype=torch.long)
        mask[:, : shown.height, : shown.width] = 1
        output = self._detector(pixel_values=shown.pixels.to(self._device), pixel_mask=mask.to(self._device))
        classes, masks = output.class_queries_logits[0].cpu(), output.masks_queries_logits[0].cpu()
        # NaN is below every threshold: it would count as a picture without objects.
        if not (classes.isfinite().all() and masks.isfinite().all()):
            raise JudgeRejected(
                "the detector returns NaN or infinite values: its weights are damaged, download it again"
            )
        objects = instances(classes, masks, shown, picture.size, _LEAST)
        return [geneval.Detection(names[one.label], one.box, one.score, one.mask) for one in objects]

    @torch.inference_mode()
    def _colors(self, picture: Image.Image, name: str, found: Sequence[geneval.Detection]) -> list[str]:
        if not found:
            return []
        if name not in self._texts:
            self._texts[name] = self._embedded(name)
        crops = torch.stack([clip_pixels(geneval.crop(picture, one)) for one in found]).to(self._device)
        vision = self._clip.vision_model(pixel_values=crops).pooler_output
        features = self._clip.visual_projection(vision).float().cpu().numpy()
        if not all(np.isfinite(values).all() for values in (features, *self._texts[name].values())):
            raise JudgeRejected("CLIP returns NaN or infinite values: its weights are damaged, download it again")
        return geneval.classify_colors(self._texts[name], name, features)[0]

    def _embedded(self, name: str) -> dict[str, Any]:
        """Return the embeddings of a class's color prompts."""
        texts = [text.format(color=color, name=name) for color in geneval.COLORS for text in geneval.COLOR_TEMPLATES]
        tokens = self._tokenizer(texts, padding=True, return_tensors="pt").to(self._device)
        pooled = self._clip.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return dict(zip(texts, self._clip.text_projection(pooled).float().cpu().numpy()))


def _open_folder(folder: Path) -> Any:
    from transformers import Mask2FormerForUniversalSegmentation

    return Mask2FormerForUniversalSegmentation.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
    )


def clip_pixels(picture: Image.Image) -> torch.Tensor:
    """Return a picture as CLIP sees it in open_clip: (3, 224, 224), short side resized with bicubic, cut to the middle."""
    width, height = max(picture.width, 1), max(picture.height, 1)
    if (width, height) != picture.size:  # an object without an area
        picture = Image.new("RGB", (width, height), geneval.BACKGROUND)
    scale = _SIDE / min(width, height)
    size = (max(int(width * scale), _SIDE), max(int(height * scale), _SIDE))
    resized = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - _SIDE) / 2), round((size[1] - _SIDE) / 2)
    cut = resized.crop((left, top, left + _SIDE, top + _SIDE))
    data = torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8).reshape(_SIDE, _SIDE, 3).float() / 255
    return ((data - torch.tensor(_CLIP_MEAN)) / torch.tensor(_CLIP_STD)).permute(2, 0, 1)
