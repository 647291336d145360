"""Written checkpoints open in every version of transformers as they do here: same tokens, same template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from uniworld.training.publish.export import write_changed
from uniworld.training.publish.processor_files import CHAT_TEMPLATE, add_processor_files
from uniworld.uniworld_core.backbones.qwen_template import chat_text
from uniworld.uniworld_core.loading.shipped import shipped_model, shipped_names
from uniworld.uniworld_core.loading.vocabulary import clip_tokenizer, qwen_tokenizer, t5_tokenizer

TINY, NANO = (shipped_model(name).checkpoint for name in ("tiny", "nano"))
TEXTS = (
    "x 12 and 345",
    "Make the 3 red circles at the top blue.",
    "user\nassistant\n",
    "don't DON'T I'LL\r\n\n  two   spaces",
    "1, 2; 34:5 (6)",
    "é ü 中文 ½ cafe\u0301",
    "<|im_start|>assistant\n<|image_pad|>",
    "a\tb",
    "..., !!\n",
)


def theirs(folder: Path) -> Any:
    """Return the tokenizer as transformers itself opens the folder."""
    kind = getattr(transformers, "Qwen2TokenizerFast", None) or transformers.Qwen2Tokenizer
    return kind.from_pretrained(folder, local_files_only=True)


def ids(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in TEXTS]


def splits_digits(folder: Path) -> bool:
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    digits = {number for word, number in vocabulary.items() if word.strip("Ġ").isdigit() and len(word) == 1}
    return set(theirs(folder)("12 345")["input_ids"]) - {vocabulary["Ġ"]} <= digits


def test_every_version_of_transformers_splits_nanos_texts_into_the_same_tokens() -> None:
    assert ids(qwen_tokenizer(NANO)) == ids(theirs(NANO))
    assert splits_digits(NANO)
    flux = shipped_model("nano").flux
    t5 = getattr(transformers, "T5TokenizerFast", None) or transformers.T5Tokenizer
    clip = getattr(transformers, "CLIPTokenizerFast", None) or transformers.CLIPTokenizer
    assert ids(t5_tokenizer(flux / "tokenizer_2")) == ids(
        t5.from_pretrained(flux / "tokenizer_2", local_files_only=True)
    )
    assert ids(clip_tokenizer(flux / "tokenizer")) == ids(
        clip.from_pretrained(flux / "tokenizer", local_files_only=True)
    )


def test_nano_has_the_ids_that_it_was_trained_with() -> None:
    # The ids that transformers 5 returned when nano was trained and examined.
    text = "Paint 12 red circles at the top left."
    assert qwen_tokenizer(NANO)(text)["input_ids"] == [747, 220, 16, 17, 388, 514, 267, 258, 294, 293, 13]


@pytest.mark.parametrize("name", shipped_names())
def test_every_exported_checkpoint_carries_template_and_splitter(tmp_path: Path, name: str) -> None:
    write_changed(shipped_model(name).checkpoint, {}, tmp_path / "out")
    assert "<|im_start|>" in json.loads((tmp_path / "out" / "chat_template.json").read_text())["chat_template"]
    assert ids(qwen_tokenizer(tmp_path / "out")) == ids(theirs(tmp_path / "out"))
    assert splits_digits(tmp_path / "out")


def rendered(folder: Path, turns: list[dict[str, Any]]) -> str:
    """Render the turns with the folder's template and drop the system turn, as the published program does."""
    template = json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    text = theirs(folder).apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    return "<|im_end|>\n".join(text.split("<|im_end|>\n")[1:])


def test_the_template_renders_the_same_prompt_as_the_prompt_module() -> None:
    asked = [{"type": "text", "text": "Make it blue."}, {"type": "image", "image": "a.png"}, {"type": "image"}]
    turns = [{"role": "user", "content": asked}]
    assert rendered(NANO, turns) == chat_text("Make it blue.", [1, 1])
    answered = [*turns, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "And red?"}]
    assert rendered(NANO, answered) == rendered(TINY, answered)


def test_a_folder_with_only_vocabulary_tables_is_completed(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copyfile(NANO / name, tmp_path / name)
    file = tmp_path / "tokenizer_config.json"
    raw = json.loads(file.read_text())
    del raw["tokenizer_class"]
    file.write_text(json.dumps(raw | {"auto_map": {"AutoTokenizer": ["evil.E", None]}}))
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    # The form in which transformers 5 saves it.
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    add_processor_files(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == settings
    assert ids(theirs(tmp_path)) == ids(qwen_tokenizer(NANO))
    assert json.loads((tmp_path / "chat_template.json").read_text()) == {"chat_template": CHAT_TEMPLATE}
    assert json.loads(file.read_text()) == raw | {"tokenizer_class": "Qwen2Tokenizer"}


def test_existing_files_are_kept(tmp_path: Path) -> None:
    shutil.copytree(NANO, tmp_path / "nano", ignore=shutil.ignore_patterns("*.safetensors", "chat_template.json"))
    (tmp_path / "nano" / "chat_template.jinja").write_text("{{ messages }}")
    before = {file.name: file.read_bytes() for file in (tmp_path / "nano").iterdir()}
    add_processor_files(tmp_path / "nano")
    assert {file.name: file.read_bytes() for file in (tmp_path / "nano").iterdir()} == before
