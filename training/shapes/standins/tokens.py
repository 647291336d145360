"""The stand-ins' tokenizers, of the same types as Qwen's, CLIP's and T5's, trained on the text of the world of shapes.

They can encode any text; words of the world are one token each.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ....uniworld_core.loading.vocabulary import use_qwen_pipeline, use_t5_pipeline
from ....uniworld_core.prompts.text import ASSISTANT, RESERVED
from ...publish.processor_files import add_template
from ..tasks.prompts import caption
from ..tasks.questions import questions
from ..tasks.tasks import KINDS, make_task

_TASKS = 6000
_WORDS = 700  # merged words and pieces, in addition to the bytes
_SPELLED = -20.0  # log-probability of a single character, below that of any word
# Special tokens in Qwen's order (the published tokenizer_config.json); their ids follow the vocabulary.
_QWEN_SPECIAL = RESERVED
_CLIP_BEGIN, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@functools.cache
def corpus(seed: int = 0) -> tuple[str, ...]:
    """Return prompts, captions, questions and answers of the training split."""
    return tuple(_corpus(seed))


def _corpus(seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for number in range(_TASKS):
        task = make_task(KINDS[number % len(KINDS)], rng, "train")
        yield task.prompt
        if task.answer:
            yield task.answer
        for scene in task.before[:1]:
            yield caption(scene, rng)
            for one in questions(scene, rng):
                yield f"{one.prompt} {one.answer}"
        # The words of the chat template are one token each, as in the published tokenizer.
        yield f"user\n{ASSISTANT}\n"


def write_qwen_tokenizer(folder: Path) -> None:
    """Train and write Qwen's byte-level BPE."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + _WORDS, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in _QWEN_SPECIAL])
    use_qwen_pipeline(tokenizer)  # after training, because nano's merges were learned without it
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    ids = {word: tokenizer.token_to_id(word) for word in _QWEN_SPECIAL}
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(ids[word]): _added(word) for word in _QWEN_SPECIAL},
            "additional_special_tokens": [word for word in _QWEN_SPECIAL if word != "<|endoftext|>"],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 4096,
            "pad_token": "<|endoftext|>",
            "processor_class": "Qwen2_5_VLProcessor",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    add_template(folder)


def qwen_ids(folder: Path) -> dict[str, int]:
    """Return the special token ids of Qwen2.5-VL's configuration, and `vocab_size`, of a written tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    ids = {word: vocabulary[word] for word in _QWEN_SPECIAL}
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "vocab_size": int(tokenizer.get_vocab_size()),
    }


def write_clip_tokenizer(folder: Path) -> dict[str, int]:
    """Train and write CLIP's lower-case BPE with word ends. Return `vocab_size`, `begin` and `end`."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_CLIP_END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_CLIP_PATTERN), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512 + _WORDS,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=[f"{byte}</w>" for byte in sorted(alphabet)],
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for word in (_CLIP_BEGIN, _CLIP_END):
        vocabulary[word] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.json", vocabulary)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    marks = {word: {**_added(word), "normalized": True} for word in (_CLIP_BEGIN, _CLIP_END)}
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(vocabulary[word]): marks[word] for word in marks},
            "bos_token": _CLIP_BEGIN,
            "clean_up_tokenization_spaces": False,
            "eos_token": _CLIP_END,
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": _CLIP_END,
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": _CLIP_END,
        },
    )
    return {"vocab_size": len(vocabulary), "begin": vocabulary[_CLIP_BEGIN], "end": vocabulary[_CLIP_END]}


def write_t5_tokenizer(folder: Path) -> int:
    """Build and write T5's unigram model. Return the vocabulary size."""
    from tokenizers import Tokenizer, models, processors

    special = ["<pad>", "</s>", "<unk>"]
    # Complete words by frequency, then single characters to spell all other text.
    words = Counter(word for text in corpus() for word in re.findall(r"\w+|[^\w\s]", text))
    total = sum(words.values())
    pieces = [(word if not word.isalnum() else f"▁{word}", math.log(count / total)) for word, count in words.items()]
    spelling = [(letter, _SPELLED) for letter in ("▁", *map(chr, range(33, 127))) if letter not in words]
    vocabulary = [(word, 0.0) for word in special] + sorted(pieces, key=lambda piece: -piece[1]) + spelling
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    use_t5_pipeline(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(number): _added(word) for number, word in enumerate(special)},
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "extra_ids": 0,
            "model_max_length": 512,
            "pad_token": "<pad>",
            "tokenizer_class": "T5TokenizerFast",
            "unk_token": "<unk>",
        },
    )
    return int(tokenizer.get_vocab_size())


def _added(word: str) -> dict[str, object]:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": word, **plain}


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
