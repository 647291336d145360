"""diffusers' classes for Qwen-Image, or an error that names the version that has them."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import UniWorldError

# The first version whose transformer masks padded text. Earlier ones attend to it.
DIFFUSERS = "0.37"


def diffusers_class(name: str) -> Any:
    """Return diffusers' class of that name. Raises UniWorldError if the installed version is too old for Qwen-Image."""
    import diffusers

    if not has_qwen_image():
        raise UniWorldError(
            f"Qwen-Image needs diffusers {DIFFUSERS} or later, and version {diffusers.__version__} is installed: "
            f'python -m pip install "diffusers>={DIFFUSERS}".'
        )
    return getattr(diffusers, name)


def has_qwen_image() -> bool:
    """Whether the installed diffusers has what Qwen-Image needs, by feature: versions that mask text have `zero_cond_t`."""
    import diffusers

    transformer = getattr(diffusers, "QwenImageTransformer2DModel", None)
    return transformer is not None and "zero_cond_t" in inspect.signature(transformer.__init__).parameters
