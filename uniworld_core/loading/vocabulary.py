"""Tokenizers built from the vocabularies in a model folder.

The folder provides the vocabulary, the merges and the special tokens. Normalizer, pre-tokenizer and decoder are defined here,
for Qwen2.5-VL, CLIP-L and T5, as in transformers 5. There are two reasons. Every version of transformers then gives the same
tokens: transformers 4 follows the pre-tokenizer in `tokenizer.json`, and 5 replaces it. And an untrusted folder can provide
neither code nor regular expressions that run forever.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UniWorldError, brief, shown
from .settings import FLAG, LIST, OBJECT, TOKEN, Rule, number, read_bytes, read_json, take

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# Size limit of a vocabulary file in bytes; Qwen's tokenizer.json has 7 million.
MAX_VOCABULARY_BYTES = 32 * 2**20
_MAX_ADDED = 4096  # added tokens; T5 has a hundred
# Qwen2's pre-tokenizer: words, single digits, runs of punctuation, line ends. Source: its published tokenizer.json.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# CLIP's pre-tokenizer. Source: openai/CLIP, simple_tokenizer.py.
CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SURROGATE = re.compile("[\ud800-\udfff]")
_DIGITS = re.compile("[0-9]{1,7}")
_PIECE = Rule(
    "a piece of text", lambda value: isinstance(value, str) and 0 < len(value) < 2**12 and not _SURROGATE.search(value)
)
_SCORE = number(-1e6, 1e6)
_ADDED = {"content": _PIECE, **dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), FLAG)}
_QWEN_SPECIAL_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_CLIP_SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}
_T5_SPECIAL_TOKENS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@dataclass(frozen=True)
class _Files:
    """The tokenizer files of a folder.

    Attributes:
        folder: their folder.
        config: the object in `tokenizer_config.json`; empty if there is no such file.
        tokenizer: the object in `tokenizer.json`; None if there is no such file.
    """

    folder: Path
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> _Files:
        config, tokenizer = folder / "tokenizer_config.json", folder / "tokenizer.json"
        return cls(
            folder,
            read_json(config) if config.exists() else {},
            read_json(tokenizer, MAX_VOCABULARY_BYTES) if tokenizer.exists() else None,
        )


def qwen_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Build Qwen2's byte-level tokenizer. Raises UniWorldError if one of its files is missing or damaged."""
    from tokenizers import models

    files = _Files.read(folder)
    vocabulary, merges = _bpe(files)
    made = _tokenizer(lambda: models.BPE(vocab=vocabulary, merges=merges), folder)
    use_qwen_pipeline(made)
    return _with_special_tokens(made, files, _QWEN_SPECIAL_TOKENS)


def clip_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Build CLIP's lower-case tokenizer. Raises UniWorldError if one of its files is missing or damaged."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

    files = _Files.read(folder)
    vocabulary, merges = _bpe(files)
    made = _tokenizer(
        lambda: models.BPE(
            vocab=vocabulary,
            merges=merges,
            end_of_word_suffix="</w>",
            unk_token=_special_token(files, "unk_token", _CLIP_SPECIAL_TOKENS),
        ),
        folder,
    )
    split = pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    tokenizer = _with_special_tokens(made, files, _CLIP_SPECIAL_TOKENS)
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(
        (str(tokenizer.eos_token), int(tokenizer.eos_token_id)),
        (str(tokenizer.bos_token), int(tokenizer.bos_token_id)),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return tokenizer


def t5_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Build T5's unigram tokenizer. Raises UniWorldError if its tokenizer.json is missing or damaged."""
    from tokenizers import models, normalizers, processors

    files, file = _Files.read(folder), folder / "tokenizer.json"
    if files.tokenizer is None:
        raise UniWorldError(f"{file} does not exist, and T5's tokenizer is read from it: copy the folder again.")
    model = take(files.tokenizer.get("model"), {"unk_id": TOKEN, "vocab": LIST}, f"model in {file}", ("vocab",))
    pieces = _pieces(model["vocab"], file)
    made = _tokenizer(lambda: models.Unigram(pieces, model.get("unk_id", 2), byte_fallback=False), folder)
    charsmap = _charsmap(files.tokenizer.get("normalizer"), file)
    if charsmap is not None:
        made.normalizer = _parse(lambda: normalizers.Precompiled(charsmap), folder)
    use_t5_pipeline(made)
    tokenizer = _with_special_tokens(made, files, _T5_SPECIAL_TOKENS)
    end = str(tokenizer.eos_token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", end], special_tokens=[(end, int(tokenizer.eos_token_id))]
    )
    return tokenizer


def use_qwen_pipeline(made: Tokenizer) -> None:
    """Set Qwen's normalizer, pre-tokenizer and decoder on a tokenizer."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated")
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([split, levels])
    made.decoder = decoders.ByteLevel()


def use_t5_pipeline(made: Tokenizer) -> None:
    """Set T5's pre-tokenizer and decoder on a tokenizer."""
    from tokenizers import decoders, pre_tokenizers

    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    made.pre_tokenizer = pre_tokenizers.Sequence(words)
    made.decoder = decoders.Metaspace(prepend_scheme="always")


def check_ids(tokenizer: PreTrainedTokenizerFast, size: int, source: str | Path) -> None:
    """Check that every token id has a row in the embedding table.

    Args:
        size: `vocab_size` of the configuration.
        source: where the configuration comes from, for the error.

    Raises:
        UniWorldError: an id has no row.
    """
    last = max(tokenizer.get_vocab().values())
    if last >= size:
        raise UniWorldError(
            f"The tokenizer in {tokenizer.name_or_path} has ids up to {last}, and {source} a vocab_size of {size}: "
            "copy tokenizer files and config.json of the same model again."
        )


def _tokenizer(make: Callable[[], Any], folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer(_parse(make, folder))


def _parse(make: Callable[[], Any], folder: Path) -> Any:
    try:
        return make()
    except BaseException as error:  # the tokenizers library raises plain Exceptions, and PanicException, which is none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UniWorldError(
            f"The tokenizer in {folder} cannot be read ({brief(error)}): copy the folder again."
        ) from error


def _with_special_tokens(made: Tokenizer, files: _Files, defaults: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """Add the folder's added and special tokens, each with its own id, and wrap the tokenizer for transformers."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    folder, added = files.folder, _added(files)
    named = {role: _special_token(files, role, defaults) for role in defaults}
    for word in named.values():
        at = made.token_to_id(word)
        if at is not None:
            added.setdefault(word, (at, {"special": True, "normalized": False}))
    if len(added) > _MAX_ADDED:
        raise UniWorldError(
            f"The tokenizer in {folder} adds {len(added)} tokens to its vocabulary, more than {_MAX_ADDED}: it is not a "
            "published one, copy the folder again."
        )
    in_order = sorted(added.items(), key=lambda item: item[1][0])
    made.add_tokens([AddedToken(word, **options) for word, (_, options) in in_order])
    for word, (at, _) in in_order:
        if made.token_to_id(word) != at:
            raise UniWorldError(
                f"The tokenizer in {folder} gives {shown(word)} the id {at}, which does not follow its vocabulary of "
                f"{made.get_vocab_size()}: copy the tokenizer files of the same model again."
            )
    for role, word in named.items():
        if made.token_to_id(word) is None:
            raise UniWorldError(
                f"The tokenizer in {folder} has the {role} {shown(word)}, which is not in its vocabulary: "
                "copy the tokenizer files of the same model again."
            )
    return PreTrainedTokenizerFast(tokenizer_object=made, name_or_path=str(folder), **named)


def _bpe(files: _Files) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges from `tokenizer.json`, or else from `vocab.json` and `merges.txt`."""
    folder = files.folder
    if files.tokenizer is not None:
        source = folder / "tokenizer.json"
        rules = {"vocab": OBJECT, "merges": LIST}
        model = take(files.tokenizer.get("model"), rules, f"model in {source}", ("vocab", "merges"))
        vocabulary, lines = model["vocab"], model["merges"]
    else:
        source = folder / "merges.txt"
        missing = [file.name for file in (folder / "vocab.json", source) if not file.exists()]
        if missing:
            raise UniWorldError(
                f"The tokenizer in {folder} lacks {' and '.join(missing)}: copy tokenizer_config.json there again, and "
                "tokenizer.json, or vocab.json and merges.txt."
            )
        vocabulary, lines = read_json(folder / "vocab.json", MAX_VOCABULARY_BYTES), _lines(source)
    pairs = [tuple(line.split(" ")) if isinstance(line, str) else line for line in lines]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            raise UniWorldError(f"{source} has the merge {shown(pair)}, expected two pieces: copy the file again.")
    numbers = vocabulary.values()
    if not vocabulary or not all(map(TOKEN.holds, numbers)) or len(set(numbers)) < len(numbers):
        raise UniWorldError(f"The vocabulary of the tokenizer in {folder} is not a table of ids: copy the files again.")
    for first, second in pairs:
        # The tokenizers library panics at some of these, which no handler of Exception catches.
        if lost := [piece for piece in (first, second, first + second) if piece not in vocabulary]:
            raise UniWorldError(
                f"{source} has the merge {shown((first, second))}, and the vocabulary in {folder} has no {shown(lost[0])}: copy "
                "the tokenizer files of the same model again."
            )
    return vocabulary, [(first, second) for first, second in pairs]


def _lines(file: Path) -> list[str]:
    """Return the merges of a `merges.txt`, whose first line may hold a version."""
    try:
        lines = read_bytes(file, MAX_VOCABULARY_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UniWorldError(f"{file} is not text ({error}): copy the file again.") from error
    merges = lines[1:] if "#version" in lines[0] else lines
    return [line.rstrip("\r") for line in merges if line.strip()]


def _pieces(rows: list[Any], file: Path) -> list[tuple[str, float]]:
    """Return a unigram vocabulary: (piece, log-probability)."""
    for row in rows:
        if not isinstance(row, list) or len(row) != 2 or not _PIECE.holds(row[0]) or not _SCORE.holds(row[1]):
            raise UniWorldError(
                f"The vocab in {file} has {shown(row)}, expected a piece and its log-probability: copy the file again."
            )
    return [(piece, float(score)) for piece, score in rows]


def _charsmap(normalizer: Any, file: Path) -> bytes | None:
    """Return SentencePiece's character map from a `tokenizer.json`, or None if it has none."""
    parts = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and part.get("type") == "Precompiled":
            try:
                return base64.b64decode(part["precompiled_charsmap"], validate=True)
            except (KeyError, TypeError, ValueError) as error:
                raise UniWorldError(f"The precompiled_charsmap in {file} is damaged: copy the file again.") from error
    return None


def _special_token(files: _Files, role: str, defaults: Mapping[str, str]) -> str:
    """Return the text of a role such as `eos_token`, from tokenizer_config.json or else the model's default."""
    word = files.config.get(role)
    word = word.get("content") if isinstance(word, dict) else word
    if word is None:
        return defaults[role]
    if not _PIECE.holds(word):
        raise UniWorldError(
            f"{files.folder / 'tokenizer_config.json'} has {role} {shown(word)}, expected {_PIECE.expected}: "
            "copy the file again."
        )
    return word


def _added(files: _Files) -> dict[str, tuple[int, dict[str, bool]]]:
    """Return {token: (id, options)} of the tokens added to the vocabulary, from each file that may list them."""
    found: dict[str, tuple[int, dict[str, bool]]] = {}

    def add(at: Any, raw: Any, file: Path) -> None:
        token = take(raw, _ADDED, f"an added token in {file}", ("content",))
        word = token.pop("content")
        if not TOKEN.holds(at) or found.setdefault(word, (at, token))[0] != at:
            raise UniWorldError(
                f"{file} gives {shown(word)} the id {shown(at)}, which is not an id or not the one of the other files: "
                "copy the tokenizer files of the same model again."
            )

    config = files.folder / "tokenizer_config.json"
    listed = take(files.config, {"added_tokens_decoder": OBJECT}, str(config)).get("added_tokens_decoder", {})
    for key, raw in listed.items():
        add(int(key) if _DIGITS.fullmatch(key) else key, raw, config)
    file = files.folder / "tokenizer.json"
    for raw in take(files.tokenizer or {}, {"added_tokens": LIST}, str(file)).get("added_tokens", []):
        add(raw.get("id") if isinstance(raw, dict) else None, raw, file)
    file = files.folder / "added_tokens.json"
    if file.exists():
        for word, at in read_json(file).items():
            add(at, {"content": word, "special": True, "normalized": False}, file)
    return found
