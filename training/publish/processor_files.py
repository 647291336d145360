"""What other programs need beside a checkpoint's weights: the published one and transformers open it with AutoProcessor."""

from __future__ import annotations

import json
from pathlib import Path

from ...uniworld_core.backbones.qwen_files import processor_settings
from ...uniworld_core.loading.settings import read_json
from ...uniworld_core.loading.vocabulary import MAX_VOCABULARY_BYTES, QWEN_PATTERN, qwen_tokenizer

# One turn after another, as in Qwen's published template: a system turn first where there is none, text and pictures in the
# order in which they were said, and an opened assistant turn where an answer is wanted. uniworld_core.prompt writes the same.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Where transformers looks for a processor's template: the first up to version 4.
_TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja")
_CLASSES = {
    "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen2_5_VLProcessor"},
    "preprocessor_config.json": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    },
}


def complete(folder: Path) -> None:
    """Add to a checkpoint's folder what it lacks of the processor: chat template, Qwen's pre-tokenizer, class names.

    What is there already stays, except that a `tokenizer.json` with another pre-tokenizer is rewritten: transformers up to
    version 4 follows it, and from 5 on uses Qwen's whatever the file says. References to code (`auto_map`) are removed.

    Raises:
        UniWorldError: a file of the tokenizer or of the picture processor is missing or damaged.
    """
    if not (folder / "preprocessor_config.json").exists():
        _write(folder / "preprocessor_config.json", processor_settings(folder)[1])
    for name, classes in _CLASSES.items():
        if (folder / name).is_file():
            raw = read_json(folder / name)
            whole = {key: value for key, value in raw.items() if key != "auto_map"}
            whole |= {key: value for key, value in classes.items() if key not in raw}
            if whole != raw:
                _write(folder / name, whole)
    add_template(folder)
    if not _splits_as_qwen(folder / "tokenizer.json"):
        qwen_tokenizer(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))


def add_template(folder: Path) -> None:
    """Write the chat template into a folder that has none."""
    if not any((folder / name).is_file() for name in _TEMPLATE_FILES):
        _write(folder / _TEMPLATE_FILES[0], {"chat_template": CHAT_TEMPLATE})


def _splits_as_qwen(file: Path) -> bool:
    if not file.is_file():
        return False
    splitter = read_json(file, MAX_VOCABULARY_BYTES).get("pre_tokenizer")
    parts = splitter.get("pretokenizers") if isinstance(splitter, dict) else None
    return isinstance(parts, list) and any(_pattern(part) == QWEN_PATTERN for part in parts)


def _pattern(part: object) -> object:
    pattern = part.get("pattern") if isinstance(part, dict) else None
    return pattern.get("Regex") if isinstance(pattern, dict) else None


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
