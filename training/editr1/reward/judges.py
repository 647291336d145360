"""Judges for the logit reward: Qwen2.5-VL as this package runs it, and any other image-text model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ....uniworld_core.backbones.qwen_config import QwenVLConfig
from ....uniworld_core.backbones.qwen_template import PICTURE
from ....uniworld_core.backbones.qwen_vl import VLM, vlm_part
from ....uniworld_core.errors import UniWorldError, brief, shown
from ....uniworld_core.families.table import FAMILIES, family_of
from ....uniworld_core.images.pictures import to_rgb
from ....uniworld_core.loading.dtypes import choose_dtype
from ....uniworld_core.loading.folders import find_folders
from ....uniworld_core.loading.settings import read_json
from ....uniworld_core.loading.shipped import shipped_model
from ....uniworld_core.loading.storage import named_storage
from ....uniworld_core.loading.weights import Shards
from ....uniworld_core.prompts.text import check_prompt
from .logit import LogitJudge
from .question import Question

_QWEN = "qwen2_5_vl"


class QwenJudge:
    """Qwen2.5-VL of this package as a judge, on its own or as UniWorld's prompt reader.

    Args:
        vlm: the model.
        pictures_first: whether the pictures come before the text, as in Qwen's own examples, or after it, as UniWorld
            reads prompts.
    """

    def __init__(self, vlm: VLM, pictures_first: bool = True) -> None:
        self._vlm, self._pictures_first = vlm, pictures_first

    def token_id(self, answer: str) -> int:
        """As `LogitJudge.token_id`."""
        return _single_token(self._vlm.tokenizer, answer)

    @torch.no_grad()
    def logits(self, questions: Sequence[Question]) -> torch.Tensor:
        """As `LogitJudge.logits`."""
        texts = [self._text(question) for question in questions]
        pictures = [to_rgb(picture) for question in questions for picture in question.pictures]
        inputs = self._vlm.text_inputs(texts, pictures)
        return self._vlm.qwen.lm_head(self._vlm.hidden_states(inputs)[:, -1])

    def _text(self, question: Question) -> str:
        text, pictures = check_prompt(question.text, "question"), PICTURE * len(question.pictures)
        said = pictures + text if self._pictures_first else text + pictures
        return f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n{question.begun}"


class TransformersJudge:
    """An image-text model of transformers as a judge, with the processor and the chat template of its folder.

    Args:
        folder: a folder with config.json, safetensors files, a processor and a chat template. Code in it never runs.
        dtype: None for the default of `choose_dtype`.

    Raises:
        UniWorldError: transformers cannot load the model or its processor.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> None:
        import transformers
        from transformers import AutoModelForImageTextToText, AutoProcessor

        chosen = choose_dtype(dtype, device)
        try:
            # Pillow's processors, which need no torchvision and give the same scores with and without it.
            named = int(transformers.__version__.partition(".")[0]) >= 5
            pillow: dict[str, Any] = {"backend": "pil"} if named else {"use_fast": False}
            self._processor: Any = AutoProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **pillow
            )
            model: Any = AutoModelForImageTextToText.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=chosen
            )
        except Exception as error:  # transformers raises exceptions of any type
            raise UniWorldError(
                f"{folder} cannot be loaded as an image-text model ({type(error).__name__}: {brief(error)}): give a folder "
                "with config.json, safetensors files and a processor."
            ) from error
        if getattr(self._processor, "chat_template", None) is None:
            raise UniWorldError(f"{folder} has no chat template: copy chat_template.jinja of the model there.")
        self._model, self._device, self._dtype = model.to(device).eval(), device, chosen

    def token_id(self, answer: str) -> int:
        """As `LogitJudge.token_id`."""
        return _single_token(self._processor.tokenizer, answer)

    @torch.no_grad()
    def logits(self, questions: Sequence[Question]) -> torch.Tensor:
        """As `LogitJudge.logits`. One question at a time: processors differ in how they pad batches."""
        return torch.stack([self._of(question) for question in questions])

    def _of(self, question: Question) -> torch.Tensor:
        content = [*({"type": "image"} for _ in question.pictures), {"type": "text", "text": question.text}]
        try:
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            pictures = [picture.convert("RGB") for picture in question.pictures] or None
            inputs = self._processor(text=[text + question.begun], images=pictures, return_tensors="pt")
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise UniWorldError(f"The judge's processor rejects a question: {brief(error)}.") from error
        moved = {
            name: value.to(self._device, self._dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        return self._model(**moved, use_cache=False).logits[0, -1]


def open_judge(
    model: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    storage: str = "auto",
    pixels: int | None = None,
) -> LogitJudge:
    """Open a judge.

    Args:
        model: a checkpoint of a family with a prompt reader, or the name of a shipped one; a Qwen2.5-VL folder; or the folder
            of another image-text model.
        dtype: compute dtype; None for the default of `choose_dtype`.
        storage: how weights are stored, one of `STORAGES`; not for other models of transformers.
        pixels: pixels to which Qwen2.5-VL resizes every picture; None for the range of its processor.

    Raises:
        UniWorldError: the folder is missing, incomplete or of an unknown kind.
    """
    if shipped_model(model) is None and not Path(model).is_dir():
        raise UniWorldError(
            f"The judge's folder {shown(model)} does not exist: give a folder, or the name of a shipped model."
        )
    folder = find_folders(model).checkpoint
    config = folder / "config.json"
    kind = (
        read_json(config).get("model_type") if config.is_file() or not (folder / "model_index.json").is_file() else None
    )
    held = named_storage(storage, dtype, device)
    if kind is None or kind in FAMILIES:
        parts = family_of(folder).open(find_folders(model))
        return QwenJudge(parts["vlm"].load(held, device), pictures_first=False)
    if kind == _QWEN:
        settings = QwenVLConfig.from_nested(read_json(config), str(config))
        return QwenJudge(vlm_part(folder, settings, Shards(folder), pixels).load(held, device))
    if storage not in ("auto", "bfloat16"):
        raise UniWorldError(
            f"storage {storage!r} works for Qwen2.5-VL only, and {folder} holds {shown(kind)}: choose auto."
        )
    return TransformersJudge(folder, device, dtype)


def _single_token(tokenizer: Any, answer: str) -> int:
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UniWorldError(
            f"The answer {answer!r} is {len(ids)} tokens of the judge: choose answers of one token each."
        )
    return int(ids[0])
