"""Picture processors: transformers' own, with the settings of a model's folder, and Pillow's resizing always."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UniWorldError, brief
from ..loading.settings import FLAG, exactly, listed, number, optional, read_json, whole

_DEVIATION = number(1e-6, 1e6)
PROCESSOR = {
    "do_resize": exactly(True, "as the model reads pictures of one size"),
    "do_rescale": FLAG,
    "do_normalize": FLAG,
    "do_convert_rgb": optional(FLAG),
    "image_mean": listed(number(-1e6, 1e6), 3, 3),
    "image_std": listed(_DEVIATION, 3, 3),
    "rescale_factor": number(1e-9, 1e6),
    "resample": whole(0, 5),
}


def processor_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The settings of a folder's picture processor, and the file that they stand in.

    Up to version 4 transformers saves them as `preprocessor_config.json`, from 5 on with the whole processor.

    Raises:
        UniWorldError: there are none, or their file is damaged.
    """
    file, processor_file = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not file.exists() and processor_file.exists():
        settings = read_json(processor_file).get("image_processor")
        if isinstance(settings, dict):
            return processor_file, settings
    return file, read_json(file)


def make_processor(name: str, settings: dict[str, Any], file: Path) -> Any:
    """A picture processor of these settings, Pillow's resizing always. Raises UniWorldError if they are damaged."""
    try:
        return pil_processor(name).from_dict(settings)
    except Exception as error:  # transformers raises all kinds on values it does not expect
        raise UniWorldError(f"{file} cannot be used ({brief(error)}): copy it again.") from error


def pil_processor(name: str) -> Any:
    """transformers' image processor that resizes with Pillow: `NAMEPil` from version 5 on, `NAME` before.

    The "fast" ones, which the Auto classes prefer where torchvision is installed, give other pixels.
    """
    import transformers

    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
