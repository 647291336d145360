"""Picture processors: transformers' own that resize with Pillow, with the settings of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UniWorldError, brief
from ..loading.settings import FLAG, exactly, listed, number, optional, read_json, whole

_DEVIATION = number(1e-6, 1e6)
PROCESSOR = {
    "do_resize": exactly(True, "because the model reads pictures of a fixed size"),
    "do_rescale": FLAG,
    "do_normalize": FLAG,
    "do_convert_rgb": optional(FLAG),
    "image_mean": listed(number(-1e6, 1e6), 3, 3),
    "image_std": listed(_DEVIATION, 3, 3),
    "rescale_factor": number(1e-9, 1e6),
    "resample": whole(0, 5),
}


def processor_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the settings of a folder's picture processor, and the file they are from.

    transformers 4 saves them as `preprocessor_config.json`, transformers 5 together with the tokenizer's settings.

    Raises:
        UniWorldError: the file is missing or damaged.
    """
    file, processor_file = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not file.exists() and processor_file.exists():
        settings = read_json(processor_file).get("image_processor")
        if isinstance(settings, dict):
            return processor_file, settings
    return file, read_json(file)


def make_processor(name: str, settings: dict[str, Any], file: Path) -> Any:
    """Make a picture processor that resizes with Pillow. Raises UniWorldError if the settings are invalid."""
    try:
        return pil_processor(name).from_dict(settings)
    except Exception as error:  # transformers raises exceptions of any type on unexpected values
        raise UniWorldError(f"{file} is invalid ({brief(error)}): copy it again.") from error


def pil_processor(name: str) -> Any:
    """Return transformers' image processor that resizes with Pillow: `NAMEPil` since version 5, `NAME` before.

    The Auto classes prefer "fast" processors if torchvision is installed. These resize to other pixels than the published
    program, which uses Pillow.
    """
    import transformers

    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
