"""The MLPs that carry VLM states and SigLIP features into the DiT's text branch, and the routing head.

Published in modeling_univa_denoise_tower.py and serve/cli.py.
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

# The hidden layer of both condition projectors is this many times the joint width.
EXPANSION = 3

TASK_HEAD_FILE = "task_head_final.pt"
# Bytes of the file: the published head (3584 to 10240 to 2) has 147 MB in float32.
_MAX_HEAD = 2**30
# Parts of the archive and bytes of its pickle: torch.save makes about ten, and under a thousand, of four tensors.
_MAX_ENTRIES, _MAX_PICKLE = 64, 2**16
# Bytes that are read of an archive at once: the list of its parts takes about a thousand.
_MAX_READ = 2**18
# What a pickle of tensors uses more than once: names of classes and words.
_PLAIN = {"GLOBAL", "STACK_GLOBAL", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE"}
_TASK_HEAD_KEYS = {"0.weight", "0.bias", "3.weight", "3.bias"}


class Projector(ComputeModule, nn.Sequential):
    """Linear, SiLU, Linear (the published config calls it `mlp2x_gelu`; the code has SiLU).

    Attributes:
        width: of what it takes.
    """

    def __init__(self, width: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.width = width
        self.extend([nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width_out)])


class Projectors(nn.Module):
    """The three projectors of a checkpoint, under their published names.

    `denoise_projector` takes VLM hidden states, `siglip_projector` SigLIP features, both to the joint width.
    `vae_projector` lies in the checkpoint and is used by no published program; it is kept so that a
    checkpoint is loaded, checked and written whole.
    """

    def __init__(self, config: UniWorldConfig) -> None:
        super().__init__()
        joint = config.joint_width
        self.denoise_projector = Projector(config.vlm.width, EXPANSION * joint, joint)
        self.siglip_projector = Projector(config.siglip_width, EXPANSION * joint, joint)
        self.vae_projector = Projector(config.vae_width, config.denoiser_width, joint)


class TaskHead(ComputeModule, nn.Sequential):
    """The routing head: Linear, SiLU, Dropout, Linear to the logits of answering and painting."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.extend([nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(0.3), nn.Linear(hidden, 2)])


class TaskHeadPart:
    """The routing head of a checkpoint, which is float32 in every storage; None for a checkpoint without one.

    Args:
        folder: the checkpoint.
        width: of the hidden states that it takes.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width

    def check(self) -> None:
        """As `Part.check`."""
        read_task_head(self.folder, self.width)

    def load(self, chosen: torch.dtype | Storage | None = None, device: torch.device | str = "cpu") -> TaskHead | None:
        """As `Part.load`."""
        head = read_task_head(self.folder, self.width)
        return None if head is None else head.to(device)


def read_task_head(folder: Path, vlm_width: int) -> TaskHead | None:
    """The routing head of a checkpoint (Linear, SiLU, Dropout, Linear), in float32, or None where there is none.

    Args:
        folder: the checkpoint; the head lies in its `task_head_final.pt`.
        vlm_width: width of the hidden states that it takes.

    Raises:
        UniWorldError: the file is not a regular one, is too large, or holds anything but the four tensors expected (it is
            read without running pickle code).
    """
    file = folder / TASK_HEAD_FILE
    if not file.exists():
        return None
    check_file(file, _MAX_HEAD)
    _check_archive(file)
    try:
        # Mapped, so that checking a head does not read it.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError or EOFError by turns
        raise _refused(file) from error
    if (
        not isinstance(state, dict)
        or set(state) != _TASK_HEAD_KEYS
        or not all(torch.is_tensor(v) for v in state.values())
    ):
        names = shown(list(state)) if isinstance(state, dict) else type(state).__name__
        raise UniWorldError(f"{file} holds {names}; the routing head has the tensors {sorted(_TASK_HEAD_KEYS)}.")
    for name, tensor in state.items():
        # A view that repeats its values is as large as it says only when it is copied.
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or not tensor.is_contiguous() or not tensor.is_floating_point():
            raise UniWorldError(
                f"{name} in {file} is not stored as a plain table of floats: save its values, not a view."
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
    head.load_state_dict({name: tensor.float() for name, tensor in state.items()})  # copied out of the file
    return head.eval().requires_grad_(False)


class _SmallReads(io.FileIO):
    """A file that is read in small pieces only: `zipfile` reads the list of parts at once, whatever size it claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _MAX_READ:
            raise UniWorldError(f"{size} bytes would be read at once")
        return super().read(size) or b""


def _check_archive(file: Path) -> None:
    """Raises UniWorldError unless a file is what `torch.save` makes of a few tensors, before torch opens it.

    torch reads no code with `weights_only`, but a pickle can still keep it busy for ever (keys of tuples within tuples, whose
    hash takes twice as long at each level), and a packed archive can grow to any size.
    """
    try:
        with _SmallReads(file) as opened, zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_ENTRIES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _refused(file)
            (pickled,) = (entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl")
            if pickled.file_size > _MAX_PICKLE:
                raise _refused(file)
            _check_pickle(archive.read(pickled))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise _refused(file) from error


def _check_pickle(data: bytes) -> None:
    """Raises UniWorldError if a pickle uses anything twice but names and words."""
    plain = True
    stored: dict[int, bool] = {}
    for operation, argument, _ in pickletools.genops(data):
        at = argument if isinstance(argument, int) else len(stored)
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            stored[at] = plain
        elif operation.name == "DUP" or (operation.name in ("GET", "BINGET", "LONG_BINGET") and not stored.get(at)):
            raise UniWorldError("a value is used twice")
        plain = operation.name in _PLAIN


def _refused(file: Path) -> UniWorldError:
    return UniWorldError(
        f"{file} was refused: it is damaged or holds more than tensors, which could run code when opened. "
        "Take the file from the published checkpoint, or save the head with today's torch.save."
    )
