"""Build modules without allocating their parameters: on the meta device, with only small computed buffers in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import UniWorldError, brief

Module = TypeVar("Module", bound=nn.Module)

# Names of the functions that initialize weights, of torch.nn.init and of tensors. On the meta device they take half of the time
# of building a network, and change nothing. transformers replaces those of torch.nn.init by its own of the same names.
_INITIALIZERS = frozenset(name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")) | {
    "zero_",
    "fill_",
    "copy_",
}


class _EmptyOnMeta(TorchFunctionMode):
    """Makes `torch.empty` return meta tensors: layers create their parameters with it, but not their computed buffers.

    Meta tensors are not initialized either.

    accelerate's `init_empty_weights(include_buffers=False)` does not do. It allocates each parameter before it moves it to
    meta, and it replaces `nn.Module.register_parameter` for all threads, although another may be building a real module.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif getattr(func, "__name__", "") in _INITIALIZERS:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules inside the block with their parameters on the meta device. Affects only the current thread."""
    with _EmptyOnMeta():
        yield


def build(make: Callable[[], Module], source: str | Path = "the configuration") -> Module:
    """Build a module on the meta device, frozen and in eval mode.

    Args:
        make: builds the module.
        source: where its configuration comes from, for the error.

    Raises:
        UniWorldError: the configuration is invalid.
    """
    try:
        with parameters_on_meta():
            module = make()
    except Exception as error:  # transformers and diffusers raise exceptions of any type on unexpected values
        raise UniWorldError(
            f"No model can be built from {source} ({type(error).__name__}: {brief(error)}): the configuration is invalid; "
            "restore the published file."
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def place(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace the meta tensor `name` of a module."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
