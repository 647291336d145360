"""A judge in this process: an image-text model of transformers, or a UniWorld checkpoint. Decoding is greedy."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .....uniworld_core.errors import UniWorldError, brief
from .....uniworld_core.families.table import FAMILIES
from .....uniworld_core.loading.dtypes import choose_dtype
from .....uniworld_core.loading.settings import read_json
from .ask import Ask
from .client import JudgeRejected
from .identity import identity_of
from .replies import JudgeReply

# Length of a reply in tokens if the benchmark sets no limit, and the highest limit.
_MAX_TOKENS, _MOST_TOKENS = 1024, 16384
# ImgEdit's judge has its own range of picture sizes, in pixels (README of PKU-YuanGroup/ImgEdit).
IMGEDIT_JUDGE, IMGEDIT_PIXELS = "ImgEdit_Judge", (1016064, 1354752)

# Answers a question: system text, text, pictures, whether the pictures come first, and the maximum length in tokens.
# Returns the answer and its length in tokens.
Answer = Callable[[str, str, "list[Image.Image]", bool, int], tuple[str, int]]


class LocalJudge:
    """A model in this process.

    Raises:
        UniWorldError: the folder has no such model, or it cannot be loaded.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.model = identity_of(folder)
        self.identity = {"model": self.model, "server": "this process"}
        self.notes: list[str] = []
        self.omitted: list[str] = []
        kind = str(read_json(folder / "config.json").get("model_type", ""))
        load = _uniworld if kind in FAMILIES else _transformers
        self._answer = load(folder, device)

    async def close(self) -> None:
        """Nothing is open."""

    async def reply(self, ask: Ask, about: JudgeReply) -> JudgeReply:
        """See `Judge.reply`."""
        text, finish = await asyncio.to_thread(self._reply, ask)
        return replace(about, text=text, model=self.model, finish=finish, time=round(time.time(), 3))

    @torch.inference_mode()
    def _reply(self, ask: Ask) -> tuple[str, str]:
        pictures = [one.decoded() for one in ask.pictures]
        limit = min(ask.max_tokens or _MAX_TOKENS, _MOST_TOKENS)
        try:
            text, length = self._answer(ask.system, ask.text, pictures, ask.pictures_first, limit)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise JudgeRejected(f"the judge in this process fails ({type(error).__name__}: {brief(error)})") from error
        return text, "length" if length >= limit else "stop"


def _uniworld(folder: Path, device: str) -> Answer:
    from .....uniworld_core.model import UniWorld
    from .....uniworld_core.prompts.reference import make_references

    model = UniWorld.from_pretrained(folder, device=device)

    def answer(system: str, text: str, pictures: list[Image.Image], first: bool, limit: int) -> tuple[str, int]:
        length = 0

        def count(tokens: int) -> None:
            nonlocal length
            length = tokens

        said = f"{system}\n\n{text}" if system else text
        references = make_references(pictures, None) or None
        return str(model.understand(said, references, max_new_tokens=limit, callback=count)), length

    return answer


def _transformers(folder: Path, device: str) -> Answer:
    import transformers
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype = choose_dtype(None, device)
    # Pillow's processors, which need no torchvision.
    named = int(transformers.__version__.partition(".")[0]) >= 5
    pillow: dict[str, Any] = {"backend": "pil"} if named else {"use_fast": False}
    try:
        processor: Any = AutoProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **pillow
        )
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, torch_dtype=dtype
        )
        model: Any = loaded.to(device).eval()
    except Exception as error:  # transformers raises exceptions of any type
        raise UniWorldError(
            f"'{folder}' cannot be loaded as an image-text model ({type(error).__name__}: {brief(error)}). Pass a folder "
            "with config.json, safetensors files, a processor and a chat template."
        ) from error
    if folder.resolve().name == IMGEDIT_JUDGE:
        _limit_pixels(processor.image_processor, *IMGEDIT_PIXELS)

    def answer(system: str, text: str, pictures: list[Image.Image], first: bool, limit: int) -> tuple[str, int]:
        images: list[dict[str, str]] = [{"type": "image"} for _ in pictures]
        words = {"type": "text", "text": text}
        chat: list[dict[str, Any]] = [{"role": "user", "content": [*images, words] if first else [words, *images]}]
        if system:
            chat.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        said = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[said], images=pictures or None, return_tensors="pt").to(device, dtype)
        # Tokenizers of transformers 4 return it for any model, and `generate` rejects what `forward` does not take.
        if "token_type_ids" not in inspect.signature(model.forward).parameters:
            inputs.pop("token_type_ids", None)
        made = model.generate(**inputs, max_new_tokens=limit, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return str(processor.decode(made, skip_special_tokens=True)), len(made)

    return answer


def _limit_pixels(processor: Any, least: int, most: int) -> None:
    """Set the range of picture sizes of a Qwen2-VL image processor."""
    processor.min_pixels, processor.max_pixels = least, most
    processor.size = {"shortest_edge": least, "longest_edge": most}
