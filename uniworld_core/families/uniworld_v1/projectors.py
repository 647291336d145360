"""The MLPs that project VLM states and SigLIP features to the DiT's text tokens, and the routing head.

Published: modeling_univa_denoise_tower.py and serve/cli.py.
"""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from pathlib import Path

import torch
from torch import nn

from ...errors import UniWorldError, shown
from ...loading.settings import check_file
from ...loading.storage import ComputeModule, Storage
from .config import UniWorldConfig

# Width of the hidden layer of both condition projectors, in multiples of the joint width.
EXPANSION = 3

TASK_HEAD_FILE = "task_head_final.pt"
# Size limit of the file in bytes. The published head (3584 to 10240 to 2) has 147 MB in float32.
_MAX_HEAD = 2**30
# Limits on the entries of the archive and on the bytes of its pickle. For four tensors, torch.save writes about ten entries
# and a pickle of less than 1,000 bytes.
_MAX_ENTRIES, _MAX_PICKLE = 64, 2**16
# Limit on a single read, in bytes. The archive's directory has about 1,000.
_MAX_READ = 2**18
# Pickle operations whose values may be used more than once: class names and strings.
_REUSABLE = {"GLOBAL", "STACK_GLOBAL", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE"}
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
    _check_archive(file)
    try:
        # Memory-mapped, so that a check does not read the values.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and others
        raise _rejected(file) from error
    if (
        not isinstance(state, dict)
        or set(state) != _TASK_HEAD_KEYS
        or not all(torch.is_tensor(v) for v in state.values())
    ):
        names = shown(list(state)) if isinstance(state, dict) else type(state).__name__
        raise UniWorldError(f"{file} holds {names}; the routing head has the tensors {sorted(_TASK_HEAD_KEYS)}.")
    for name, tensor in state.items():
        # An expanded view passes the limit on the file's size, but takes its full size once it is copied.
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or not tensor.is_contiguous() or not tensor.is_floating_point():
            raise UniWorldError(
                f"{name} in {file} is not stored as a contiguous float tensor: save its values, not a view."
            )
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


class _SmallReads(io.FileIO):
    """A file that rejects large reads: `zipfile` reads the archive's directory in one piece, whatever size it claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _MAX_READ:
            raise UniWorldError(f"a single read asks for {size} bytes")
        return super().read(size) or b""


def _check_archive(file: Path) -> None:
    """Check, before torch opens a file, that it looks like a few tensors written by `torch.save`.

    With `weights_only`, torch runs no code from the file. But hashing a key of nested tuples takes twice as long per level, so
    a small pickle can keep it busy forever, and a compressed archive can expand to any size.

    Raises:
        UniWorldError: the file does not look like that.
    """
    try:
        with _SmallReads(file) as opened, zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_ENTRIES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _rejected(file)
            (pickled,) = (entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl")
            if pickled.file_size > _MAX_PICKLE:
                raise _rejected(file)
            _check_pickle(archive.read(pickled))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise _rejected(file) from error


def _check_pickle(data: bytes) -> None:
    """Raise UniWorldError if a pickle uses a value twice, except class names and strings: nesting needs such reuse."""
    reusable = True
    stored: dict[int, bool] = {}
    for operation, argument, _ in pickletools.genops(data):
        at = argument if isinstance(argument, int) else len(stored)
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            stored[at] = reusable
        elif operation.name == "DUP" or (operation.name in ("GET", "BINGET", "LONG_BINGET") and not stored.get(at)):
            raise UniWorldError("a value is used twice")
        reusable = operation.name in _REUSABLE


def _rejected(file: Path) -> UniWorldError:
    return UniWorldError(
        f"{file} was rejected: it is damaged, or holds something other than tensors, which could run code when opened. "
        "Use the file of the published checkpoint, or save the head again with a current version of torch."
    )
