"""Complete the processor files of a checkpoint, so that transformers and the published program can open it.

Both use AutoProcessor, which needs a chat template, class names and a pre-tokenizer in the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...uniworld_core.backbones.qwen_files import processor_settings
from ...uniworld_core.loading.settings import read_json
from ...uniworld_core.loading.vocabulary import MAX_VOCABULARY_BYTES, QWEN_PATTERN, qwen_tokenizer

# Equivalent to Qwen's published template: a system turn first if there is none, then text and pictures of each turn in
# order, and an opened assistant turn with add_generation_prompt. `qwen_template.chat_text` writes the same prompt.
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
# Where transformers looks for a processor's chat template; version 4 reads only the first.
_TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja")
_CLASSES = {
    "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen2_5_VLProcessor"},
    "preprocessor_config.json": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    },
}


def add_processor_files(folder: Path) -> None:
    """Add missing processor files to a checkpoint folder: chat template, Qwen's pre-tokenizer, class names.

    Existing files are kept, except that a `tokenizer.json` with another pre-tokenizer is rewritten: transformers 4 uses
    the one in the file, transformers 5 always uses Qwen's. References to code (`auto_map`) are removed.

    Raises:
        UniWorldError: a file of the tokenizer or the image processor is missing or damaged.
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
    """Write the chat template into a folder without one."""
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
