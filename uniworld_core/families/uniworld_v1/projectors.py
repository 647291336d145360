"""The MLPs that project VLM states and SigLIP features to the DiT's text tokens, and the routing head.

Published: modeling_univa_denoise_tower.py and serve/cli.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...errors import UniWorldError, shown
from ...loading.pickled import PickleLimits, read_tensors
from ...loading.settings import check_file
from ...loading.storage import ComputeModule, Storage
from .config import UniWorldConfig

# Width of the hidden layer of both condition projectors, in multiples of the joint width.
EXPANSION = 3

TASK_HEAD_FILE = "task_head_final.pt"
# Size limit of the file in bytes. The published head (3584 to 10240 to 2) has 147 MB in float32.
_MAX_HEAD = 2**30
# For four tensors, torch.save writes about ten entries and a pickle of less than 1,000 bytes.
_LIMITS = PickleLimits(entries=64, structure=2**16, read=2**18)
_TASK_HEAD_KEYS = {"0.weight", "0.bias", "3.weight", "3.bias"}


class Projector(ComputeModule, nn.Sequential):
    """Linear, SiLU, Linear. The published config calls it `mlp2x_gelu`, but the published code uses SiLU.

    Attributes:
        width: width of the input.
    """

    def __init__(self, width: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.width = width
        self.extend([nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width_out)])


class Projectors(nn.Module):
    """The three projectors of a checkpoint, under their published names.

    `denoise_projector` projects VLM hidden states to the joint width, `siglip_projector` SigLIP features. `vae_projector` is
    stored in the checkpoint, but no published program uses it. It is loaded so that checkpoints are checked and written
    completely.
    """

    def __init__(self, config: UniWorldConfig) -> None:
        super().__init__()
        joint = config.joint_width
        self.denoise_projector = Projector(config.vlm.width, EXPANSION * joint, joint)
        self.siglip_projector = Projector(config.siglip_width, EXPANSION * joint, joint)
        self.vae_projector = Projector(config.vae_width, config.denoiser_width, joint)


class TaskHead(ComputeModule, nn.Sequential):
    """The routing head: Linear, SiLU, Dropout, Linear, to the logits (text, image)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.extend([nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(0.3), nn.Linear(hidden, 2)])


class TaskHeadPart:
    """The routing head of a checkpoint as a part: float32 in every storage, or None if the checkpoint has no head.

    Args:
        folder: the checkpoint.
        width: width of the VLM's hidden states.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width

    def check(self) -> None:
        """Check the head (`Part.check`)."""
        read_task_head(self.folder, self.width)

    def load(self, chosen: torch.dtype | Storage | None = None, device: torch.device | str = "cpu") -> TaskHead | None:
        """Load the head (`Part.load`)."""
        head = read_task_head(self.folder, self.width)
        return None if head is None else head.to(device)


def read_task_head(folder: Path, vlm_width: int) -> TaskHead | None:
    """Read the routing head of a checkpoint in float32, without running pickle code.

    Args:
        folder: the checkpoint, with the head in `task_head_final.pt`.
        vlm_width: width of the VLM's hidden states.

    Returns:
        None if the checkpoint has no head.

    Raises:
        UniWorldError: the file is not a regular file, is too large, or holds anything but the four expected tensors.
    """
    file = folder / TASK_HEAD_FILE
    if not file.exists():
        return None
    check_file(file, _MAX_HEAD)
    state = read_tensors(file, _LIMITS)
    if set(state) != _TASK_HEAD_KEYS:
        raise UniWorldError(
            f"{file} holds {shown(list(state))}; the routing head has the tensors {sorted(_TASK_HEAD_KEYS)}."
        )
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise UniWorldError(f"{name} in {file} has dtype {tensor.dtype}, expected floating point.")
    hidden = state["0.bias"].numel()
    expected = {"0.weight": (hidden, vlm_width), "0.bias": (hidden,), "3.weight": (2, hidden), "3.bias": (2,)}
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise UniWorldError(
                f"{name} in {file} has shape {list(state[name].shape)}, expected {list(shape)}: "
                "it belongs to another checkpoint."
            )
    head = TaskHead(vlm_width, hidden)
    head.load_state_dict({name: tensor.float() for name, tensor in state.items()})  # copies from the mapped file
    return head.eval().requires_grad_(False)
