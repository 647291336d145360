"""Names of the models that judge in this process: with a hash, so that recorded replies belong to one model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .....uniworld_core.errors import UniWorldError
from .....uniworld_core.files import sha256_file

# GenEval's detector. The names of mmdet's published files end with the first digits of their SHA-256.
PUBLISHED_DETECTOR = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
_PUBLISHED_NAME = "mmdet-mask2former-swin-s-743b7d99"
_DIGITS, _SHOWN = 8, 12
# Number and size in bytes of the parts of a file of weights that are hashed.
_PARTS, _PART = 64, 2**16


def identity_of(model: Path) -> str:
    """Return a name for a model: its own, and a hash.

    Args:
        model: a folder, whose hash is over its configuration, and the sizes and samples of its files; or a file, whose hash
            is its SHA-256.

    Raises:
        UniWorldError: it does not exist, or is neither a folder in transformers' layout nor a file.
    """
    if model.is_file():
        return f"{model.stem}-{_digest_of(model)[:_SHOWN]}"
    if not model.exists():
        raise UniWorldError(f"'{model}' does not exist: check its path.")
    config = model / "config.json"
    if not config.is_file():
        raise UniWorldError(f"'{model}' has no config.json. Pass the folder of a model in transformers' layout.")
    files = [(path.name, path.stat().st_size, _sample_of(path)) for path in sorted(model.glob("*.safetensors"))]
    if not files:
        raise UniWorldError(f"'{model}' has no weights, files *.safetensors. Download the model again.")
    digest = hashlib.sha256(config.read_bytes() + json.dumps(files).encode()).hexdigest()
    return f"{model.resolve().name}-{digest[:_SHOWN]}"


def _sample_of(path: Path) -> str:
    """Hash evenly spaced parts of a file: trained weights differ nearly everywhere, and all of them would take minutes."""
    digest, last = hashlib.sha256(), max(path.stat().st_size - _PART, 0)
    with path.open("rb") as file:
        for number in range(_PARTS):
            file.seek(last * number // (_PARTS - 1))
            digest.update(file.read(_PART))
    return digest.hexdigest()


def detector_name(detector: Path, clip: Path) -> str:
    """Return the name under which detections are recorded.

    Raises:
        UniWorldError: as `identity_of`, or `clip` is a file.
    """
    if not clip.exists():
        raise UniWorldError(f"'{clip}' does not exist: check its path.")
    if not clip.is_dir():
        raise UniWorldError(f"'{clip}' is not a folder. Pass the folder of a CLIP in transformers' layout.")
    published = detector.is_file() and _digest_of(detector).startswith(_PUBLISHED_NAME[-_DIGITS:])
    return f"{_PUBLISHED_NAME if published else identity_of(detector)} with {identity_of(clip)}"


def is_published_detector(name: str) -> bool:
    """Return whether a name of `detector_name` stands for the published weights, recognized by their SHA-256."""
    return name.startswith(f"{_PUBLISHED_NAME} ")


def _digest_of(file: Path) -> str:
    try:
        return sha256_file(file)
    except OSError as error:
        raise UniWorldError(f"'{file}' cannot be read: {error.strerror}.") from error
