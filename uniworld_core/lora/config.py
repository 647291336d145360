"""The settings of a LoRA beside its tensors: PEFT's `adapter_config.json`, or the same in a file's metadata."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UniWorldError, shown
from ..loading.settings import parse_json

# The key of a safetensors file's metadata in which diffusers (0.34 and later) stores PEFT's settings as JSON.
METADATA_KEY = "lora_adapter_metadata"
# diffusers' name of the denoiser, which prefixes the settings there.
_COMPONENT = "transformer."
# Patterns come from a file, and arbitrary regular expressions can run for ever. PEFT's are names of modules, in which
# numbers may be left open.
_PATTERN = re.compile(r"\^?(?:[\w.-]|\\[.d]\+?|\.\*){1,200}\$?")
_MAX_OPEN = 3  # repetitions in a pattern
_MAX_PATTERNS = 5000
# Settings that change what the tensors mean, with the only value that is supported.
_REFUSED: dict[str, tuple[object, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
}


@dataclass(frozen=True)
class AdapterConfig:
    """The settings that decide the strength of a LoRA.

    Attributes:
        source: the file, for messages.
        rank, alpha: of all modules that no pattern names; None if the settings lack them.
        rank_pattern, alpha_pattern: {pattern of a module's name: rank or alpha}, as PEFT matches them.
        rank_stabilized: whether the scale is alpha / sqrt(rank) (arXiv 2312.03732) instead of alpha / rank.
        in_file: whether they are in the metadata of the weights' own file, where diffusers reads them too.
    """

    source: str
    rank: int | None
    alpha: float | None
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool = False
    in_file: bool = False

    def rank_of(self, module: str) -> int | None:
        """Return the rank of a module, by its name in the network."""
        found = _matching(self.rank_pattern, module)
        return self.rank if found is None else int(found)

    def alpha_of(self, module: str) -> float | None:
        """Return alpha of a module, by its name in the network."""
        found = _matching(self.alpha_pattern, module)
        return self.alpha if found is None else found

    def scale(self, alpha: float, rank: int) -> float:
        """Return the factor of a module's low-rank product."""
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def adapter_config(raw: Mapping[str, Any], source: str) -> AdapterConfig:
    """Check PEFT's settings.

    Args:
        raw: the object in `adapter_config.json`.
        source: the file, for messages.

    Raises:
        UniWorldError: they are not those of a plain LoRA, or a value is invalid.
    """
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        raise UniWorldError(f"{source} has peft_type {shown(kind)}: only LORA is supported.")
    for key, allowed in _REFUSED.items():
        if raw.get(key) not in allowed:
            raise UniWorldError(f"{source} has {key} {shown(raw[key])}, which is not supported: only plain LoRAs are.")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    ranks, alphas = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
    for key, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
            raise UniWorldError(f"{source} has {key} {shown(patterns)}; it must be an object of names and numbers.")
        for pattern, value in patterns.items():
            _check_pattern(pattern, f"{source} in {key}")
            _check_number(value, f"{source} has {key} of {shown(pattern)}", whole=key == "rank_pattern")
    _check_number(rank, f"{source} has r", whole=True)
    _check_number(alpha, f"{source} has lora_alpha")
    stabilized = raw.get("use_rslora", False)
    if not isinstance(stabilized, bool):
        raise UniWorldError(f"{source} has use_rslora {shown(stabilized)}; it must be true or false.")
    return AdapterConfig(source, rank, alpha, ranks, alphas, stabilized)


def config_in_metadata(metadata: Mapping[str, str], source: str) -> AdapterConfig | None:
    """Return the settings that diffusers stores in a file's metadata, or None.

    Raises:
        UniWorldError: they are damaged, or as `adapter_config`.
    """
    if METADATA_KEY not in metadata:
        return None
    where = f"{METADATA_KEY} of {source}"
    raw = parse_json(metadata[METADATA_KEY].encode(), where)
    if not isinstance(raw, dict):
        raise UniWorldError(f"{where} holds a {type(raw).__name__}, not an object: copy the file again.")
    own = {key.removeprefix(_COMPONENT): value for key, value in raw.items() if key.startswith(_COMPONENT)}
    return replace(adapter_config(own, where), in_file=True) if own else None


def check_alpha(alpha: float, what: str) -> float:
    """Return alpha. Raises UniWorldError unless it is a finite number other than 0."""
    _check_number(alpha, what)
    return alpha


def _check_pattern(pattern: str, where: str) -> None:
    repeated = pattern.count("*") + pattern.count("+")
    if not _PATTERN.fullmatch(pattern) or repeated > _MAX_OPEN:
        raise UniWorldError(
            f"{where} has the pattern {shown(pattern)}: only names of modules are supported, in which \\d+ and .* leave a "
            "part open."
        )


def _check_number(value: object, what: str, whole: bool = False) -> None:
    if value is None:
        return
    fits = isinstance(value, int) if whole else isinstance(value, (int, float))
    # Compared, because `math.isfinite` raises an exception for integers beyond the range of a float.
    if isinstance(value, bool) or not fits or not 0 < abs(value) <= sys.float_info.max or (whole and value < 0):  # type: ignore[arg-type, operator]
        kind = "a whole number above 0" if whole else "a finite number other than 0"
        raise UniWorldError(f"{what} {shown(value)}; it must be {kind}.")


def _matching(patterns: Mapping[str, float], module: str) -> float | None:
    """Return the value of the first pattern that a module's name matches, as PEFT's `get_pattern_key` does."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return None
