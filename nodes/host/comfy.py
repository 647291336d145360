"""ComfyUI's own memory manager, progress bar, interrupt and model folders, behind `protocol.Host`.

Imported only inside a running ComfyUI.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ...uniworld_core.loading.layers import STORED_LAYERS
from ...uniworld_core.loading.shipped import shipped_lora_folders
from ..renamed import RENAMED
from .protocol import MODEL_FOLDERS, WARNING, Module

# Longest side in pixels of a preview sent to the editor; the size that ComfyUI's own samplers use.
_PREVIEW_SIDE = 512


class _Holder(torch.nn.Module):
    """A plain wrapper module. ModelPatcher sets attributes on its module, which transformers' models forbid."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


@dataclass
class _ComfyProgress:
    bar: comfy.utils.ProgressBar
    total: int

    def update(self, value: int, preview: Image.Image | None = None) -> None:
        self.bar.update_absolute(value, self.total, None if preview is None else ("JPEG", preview, _PREVIEW_SIDE))


@dataclass
class _ComfyHeld(Generic[Module]):
    patcher: comfy.model_patcher.ModelPatcher
    module: Module

    def on_device(self, working_memory: int = 0) -> Module:
        management.load_models_gpu([self.patcher], memory_required=working_memory)
        if getattr(self.patcher.model, "model_lowvram", False):
            _move_rest(self.module, self.patcher.load_device)
        return self.module


# Layers that ComfyUI can leave on the CPU and copy to the GPU when they are used, by the class that they replace.
_CASTABLE: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    kind: getattr(comfy.ops.manual_cast, kind.__name__)
    for kind in (
        torch.nn.Linear,
        torch.nn.Conv1d,
        torch.nn.Conv2d,
        torch.nn.Conv3d,
        torch.nn.GroupNorm,
        torch.nn.LayerNorm,
        torch.nn.Embedding,
    )
}


class _Movable:
    """Attributes by which ModelPatcher recognizes a layer that it may leave on the CPU. The layer moves its weights itself."""

    comfy_cast_weights = False
    weight_function: ClassVar[list[object]] = []
    bias_function: ClassVar[list[object]] = []


_CASTABLE |= {kind: type(f"Movable{kind.__name__}", (_Movable, kind), {}) for kind in STORED_LAYERS}


def _make_castable(module: torch.nn.Module) -> None:
    """Turn layers into ones that ModelPatcher loads partially. Their arithmetic is the same, bit by bit.

    Anything else is loaded completely, or fails on a card that is too small. Plain layers become ComfyUI's own, and those
    that store weights in another form get what ModelPatcher looks for.
    """
    for layer in module.modules():
        castable = _CASTABLE.get(type(layer))
        if castable is not None:
            layer.__class__ = castable
            if not hasattr(layer, "bias"):  # an embedding, of which ComfyUI's constructor says so
                layer.register_parameter("bias", None)


def _move_rest(module: torch.nn.Module, device: torch.device) -> None:
    """Move what partial loading leaves behind: weights of other classes, which it skips when room is short, and buffers."""
    for layer in module.modules():
        tensors = dict(layer.named_buffers(recurse=False))
        if not hasattr(layer, "comfy_cast_weights"):
            tensors |= dict(layer.named_parameters(recurse=False))
        for tensor in tensors.values():
            if tensor.device != device:
                tensor.data = tensor.data.to(device)


class ComfyHost:
    """`protocol.Host` over ComfyUI."""

    def __init__(self) -> None:
        for kind, folder in MODEL_FOLDERS.items():
            # Without file extensions: models are folders, which the loader lists itself.
            if kind not in folder_paths.folder_names_and_paths:
                folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / folder))
        # LoRAs of the shipped models, for ComfyUI's loaders and the template that uses one.
        for folder in shipped_lora_folders():
            folder_paths.add_model_folder_path("loras", str(folder))
        _register_replacements()

    def is_comfyui(self) -> bool:
        return True

    def model_folders(self, kind: str) -> list[Path]:
        return [Path(path) for path in folder_paths.get_folder_paths(kind)]

    def model_files(self, kind: str) -> list[str]:
        return folder_paths.get_filename_list(kind)

    def model_file(self, kind: str, name: str) -> Path | None:
        path = folder_paths.get_full_path(kind, name)
        return None if path is None else Path(path)

    def progress(self, total: int) -> _ComfyProgress:
        return _ComfyProgress(comfy.utils.ProgressBar(total), total)

    def check_interrupt(self) -> None:
        management.throw_exception_if_processing_interrupted()

    def warn(self, text: str) -> None:
        logging.warning(text)
        context = get_executing_context()
        server = PromptServer.instance
        if context is not None:
            server.send_sync(WARNING, {"node": context.node_id, "message": text}, server.client_id)
            # The editor shows this text on the node.
            PromptServer.instance.send_progress_text(text, context.node_id)

    def block(self) -> ExecutionBlocker:
        return ExecutionBlocker(None)

    def devices(self) -> list[str]:
        return ["default", "cpu"]

    def load_device(self, device: str) -> torch.device:
        return torch.device("cpu") if device == "cpu" else management.get_torch_device()

    def offload_device(self, device: str) -> torch.device:
        return torch.device("cpu") if device == "cpu" else management.unet_offload_device()

    def manage(
        self, module: Module, device: str, reload: Callable[[], Module], offload: str = "auto", name: str = ""
    ) -> _ComfyHeld[Module]:
        _make_castable(module)
        # ComfyUI offloads models to system RAM itself, in parts if need be, so it needs neither `reload` nor `offload`.
        patcher = comfy.model_patcher.ModelPatcher(
            _Holder(module), load_device=self.load_device(device), offload_device=self.offload_device(device)
        )
        return _ComfyHeld(patcher, module)


def _register_replacements() -> None:
    """Register the renamed nodes with ComfyUI, if it has a register for them (0.3.64 has not)."""
    register = getattr(getattr(PromptServer, "instance", None), "node_replace_manager", None)
    if register is None:
        return
    from comfy_api.latest import io

    for old, new in RENAMED.items():
        register.register(io.NodeReplace(old_node_id=old, new_node_id=new))
