"""ComfyUI's CLIP of type qwen_image as UniWorld's VLM, and its CLIP_VISION as UniWorld's SigLIP.

ComfyUI supports Qwen2.5-VL for Qwen-Image, which prepares prompts and pictures differently. This module works around that:

- `clip.tokenize` treats `embedding:NAME` in prompts as a file name. The inner tokenizer, used here, does not.
- `clip.encode_from_tokens` removes Qwen-Image's template, and with it most of a UniWorld prompt.
- The vision encoder returns the tokens of a picture in window order in some versions (such as 0.3.64), and in row order in
  others. Its merger returns window order in all versions, so the row order is computed from the merger's output.
- ComfyUI resizes pictures itself. Pictures that already have the right size are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import torch
from comfy.sd1_clip import SDClipModel
from PIL import Image
from safetensors import safe_open
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from ....uniworld_core.backbones.qwen_template import conversation_text
from ....uniworld_core.errors import UniWorldError, brief
from ....uniworld_core.families.family import Route
from ....uniworld_core.families.uniworld_v1.comfy_files import POOLED_EMPTY, VLM_PIXELS_KEY
from ....uniworld_core.families.uniworld_v1.config import VLM_PIXELS
from ....uniworld_core.families.uniworld_v1.painting import NAME
from ....uniworld_core.families.uniworld_v1.projectors import Projector, TaskHead
from ....uniworld_core.images.pictures import to_image
from ....uniworld_core.prompts.text import ASSISTANT, IMAGE_PAD
from ... import host
from ..conditioning import FAMILY_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ....uniworld_core.prompts.conversation import Conversation

_PATCH_CELL = 28  # side of a token in pixels: two patches of 14
_WRITTEN_BY = "write it with `uniworld convert CHECKPOINT models --to comfy`"


@dataclass(frozen=True, eq=False)
class ProjectorFile:
    """The contents of a projector file.

    Attributes:
        projector: maps Qwen2.5-VL's hidden states to FLUX's text tokens. ComfyUI manages its memory.
        pooled: (P,), CLIP's pooled vector of the empty prompt.
        pixels: number of pixels to which pictures are resized for Qwen2.5-VL.
    """

    projector: host.Managed[Projector]
    pooled: torch.Tensor
    pixels: int


def encode_text(clip: Any, name: str, conversation: Conversation, guidance: float) -> list[list[Any]]:
    """Encode a conversation as CONDITIONING.

    Args:
        clip: a CLIP of type qwen_image.
        name: name of a projector file in text_encoders.

    Raises:
        UniWorldError: the CLIP or the file belongs to another model.
    """
    file = _projector_file(*_find_file("text_encoders", name))
    hidden, _ = _hidden_states(clip, conversation, file.pixels)
    projector = file.projector.on_device()
    weight = projector[0].weight
    if hidden.shape[-1] != projector.width:
        raise UniWorldError(
            f"The CLIP gives states of width {hidden.shape[-1]}, and {name} takes {projector.width}: load UniWorld's "
            "Qwen2.5-VL with Load CLIP, type qwen_image."
        )
    device = host.current().load_device("default")
    with torch.inference_mode(False), torch.no_grad():
        tokens = projector(hidden.to(device, weight.dtype)).float().cpu()
    return [[tokens, {"pooled_output": file.pooled[None].clone(), "guidance": guidance, FAMILY_KEY: NAME}]]


def route_text(clip: Any, name: str, conversation: Conversation, pixels: int = VLM_PIXELS) -> Route:
    """Apply the routing head in a file of text_encoders to a conversation. Raises UniWorldError as `encode_text` does."""
    head = _routing_file(*_find_file("text_encoders", name)).on_device()
    hidden, from_end = _hidden_states(clip, conversation, pixels)
    state = hidden[:, -from_end].float()
    if state.shape[-1] != head[0].in_features:
        raise UniWorldError(
            f"The CLIP gives states of width {state.shape[-1]}, and {name} takes {head[0].in_features}: load UniWorld's "
            "Qwen2.5-VL with Load CLIP, type qwen_image."
        )
    with torch.no_grad():
        logits = head(state.to(host.current().load_device("default"), head[0].weight.dtype))
    return Route(logits.float().cpu())


def encode_siglip(clip_vision: Any, pictures: Sequence[Image.Image]) -> Any:
    """Encode RGB pictures as CLIP_VISION_OUTPUT, resized to the encoder's square as SigLIP2's own processor does.

    Raises:
        UniWorldError: the encoder is not SigLIP.
    """
    if list(clip_vision.image_mean) != [0.5, 0.5, 0.5]:
        raise UniWorldError(
            f"The CLIP vision model has image_mean {clip_vision.image_mean}, and SigLIP2 has 0.5: load "
            "siglip2-so400m-patch16-512 with Load CLIP Vision."
        )
    side = int(clip_vision.image_size)
    # Bilinear, as siglip2-so400m-patch16-512's preprocessor_config.json says (resample 2); ComfyUI resizes bicubically.
    squares = [picture.resize((side, side), Image.Resampling.BILINEAR) for picture in pictures]
    return clip_vision.encode_image(to_image(squares), crop=False)


def _hidden_states(clip: Any, conversation: Conversation, pixels: int) -> tuple[torch.Tensor, int]:
    """Return hidden states (1, L, D) after the final norm, and the position of the last `assistant`, counted from the end."""
    inner, tokenizer = _inner(clip)
    text = conversation_text([(turn.role, turn.text, [1] * len(turn.refs)) for turn in conversation.turns])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pad, assistant = (tokenizer.convert_tokens_to_ids(word) for word in (IMAGE_PAD, ASSISTANT))
    pictures = iter([_presized(ref.picture, pixels) for ref in conversation.refs])
    row: list[tuple[Any, float]] = [
        ({"type": "image", "data": next(pictures), "original_type": "image"} if token == pad else token, 1.0)
        for token in ids
    ]
    # As CLIP.encode_from_tokens does, without a clip skip that another node may have set.
    clip.cond_stage_model.reset_clip_options()
    clip.load_model()
    clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})
    with _rows_in_order(inner.transformer.visual), torch.no_grad():
        hidden = inner.encode_token_weights([row])[0]
    return hidden.float(), len(ids) - max(i for i, token in enumerate(ids) if token == assistant)


def _inner(clip: Any) -> tuple[SDClipModel, Any]:
    """Return the Qwen2.5-VL in a CLIP, and its transformers tokenizer. Raises UniWorldError for another model."""
    for name, module in clip.cond_stage_model.named_children():
        transformer = getattr(module, "transformer", None)
        if isinstance(module, SDClipModel) and hasattr(getattr(transformer, "visual", None), "merger"):
            return module, getattr(clip.tokenizer, name).tokenizer
    raise UniWorldError(
        f"The CLIP is {type(clip.cond_stage_model).__name__}, but UniWorld needs Qwen2.5-VL: use Load CLIP with type "
        "qwen_image."
    )


def _presized(picture: Image.Image, pixels: int) -> torch.Tensor:
    """Resize a picture exactly as Qwen's own processor does, and return it as (1, H, W, 3) in 0..1."""
    height, width = smart_resize(picture.height, picture.width, _PATCH_CELL, pixels, pixels)
    return to_image([picture.resize((width, height), Image.Resampling.BICUBIC)])


@contextmanager
def _rows_in_order(visual: Any) -> Iterator[None]:
    """Make a vision encoder return tokens in row order inside the block, in every version of ComfyUI."""
    merged: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        merged.append(output)

    def reorder(module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        grid = kwargs["image_grid_thw"] if "image_grid_thw" in kwargs else args[1]
        index = torch.as_tensor(module.get_window_index(grid)[0])
        return merged.pop()[torch.argsort(index).to(output.device)]

    handles = (
        visual.merger.register_forward_hook(keep),
        visual.register_forward_hook(reorder, with_kwargs=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _find_file(kind: str, name: str) -> tuple[Path, int]:
    """Return the file of a name, and its modification time in ns, a cache key. Raises UniWorldError if it is missing."""
    found = folder_paths.get_full_path(kind, name)
    if found is None:
        raise UniWorldError(f"There is no {name} in ComfyUI's {kind} folders: {_WRITTEN_BY}.")
    return Path(found), Path(found).stat().st_mtime_ns


# Only the last file of each kind is cached, because a graph uses one model.
@lru_cache(maxsize=1)
def _projector_file(file: Path, changed: int) -> ProjectorFile:
    tensors, metadata = _read(file)
    weights = _shaped(file, tensors, "denoise_projector.", ("0.weight", "0.bias", "2.weight", "2.bias"))
    pooled, pixels = tensors.get(POOLED_EMPTY), metadata.get(VLM_PIXELS_KEY, str(VLM_PIXELS))
    if pooled is None or pooled.ndim != 1 or not pixels.isdigit():
        raise UniWorldError(f"{file} holds no pooled empty prompt: {_WRITTEN_BY}.")
    (hidden, width), width_out = weights["0.weight"].shape, weights["2.weight"].shape[0]
    projector = Projector(width, hidden, width_out).requires_grad_(False).to(weights["0.weight"].dtype)
    _load(file, projector, weights)
    return ProjectorFile(_managed(projector), pooled.float(), int(pixels))


@lru_cache(maxsize=1)
def _routing_file(file: Path, changed: int) -> host.Managed[TaskHead]:
    tensors, _ = _read(file)
    weights = _shaped(file, tensors, "", ("0.weight", "0.bias", "3.weight", "3.bias"))
    hidden, width = weights["0.weight"].shape
    head = TaskHead(width, hidden).requires_grad_(False).to(weights["0.weight"].dtype)
    _load(file, head, weights)
    return _managed(head.eval())


def _read(file: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    try:
        with safe_open(str(file), "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise UniWorldError(f"{file} cannot be read ({brief(error)}): {_WRITTEN_BY}.") from error


def _shaped(
    file: Path, tensors: Mapping[str, torch.Tensor], prefix: str, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    found = {name: tensors[prefix + name] for name in names if prefix + name in tensors}
    if len(found) != len(names) or any(found[name].ndim != (2 if name.endswith("weight") else 1) for name in names):
        raise UniWorldError(
            f"{file} holds {sorted(tensors)[:5]}, expected {[prefix + name for name in names]}: {_WRITTEN_BY}."
        )
    return found


def _load(file: Path, module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise UniWorldError(
            f"{file} holds tensors of shapes that do not fit ({brief(error)}): {_WRITTEN_BY}."
        ) from error


def _managed(module: Any) -> Any:
    return host.current().manage(module, "default", lambda: module)
