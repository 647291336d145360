"""Settings that make a part faster: compiled blocks, and another implementation of attention. Both are off by default.

`torch.compile` is applied to the blocks that a network repeats, as diffusers' `compile_repeated_blocks` does: one block is
compiled for all of them. Here their `forward` is compiled, not their `__call__`, so that the hooks of caches and of offloading,
which replace `forward` later, run outside of the compiled code.
"""

from __future__ import annotations

import functools
import logging
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UniWorldError, shown
from .dtypes import usable_device
from .options import ATTENTIONS, COMPILES
from .storage import ComputeModule

_CALLER = "diffusers.models.modeling_utils"


@dataclass(frozen=True)
class Speed:
    """How the networks of a part are run.

    Attributes:
        compile: one of `COMPILES`.
        attention: one of `ATTENTIONS`.
    """

    compile: str = COMPILES[0]
    attention: str = ATTENTIONS[0]

    def check(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Compile a small function and compute a small attention, if these settings are not the defaults.

        Raises:
            UniWorldError: a name is unknown, or the device, the compiler or an installed library does not support it.
        """
        for name, value, known in (("compile", self.compile, COMPILES), ("attention", self.attention, ATTENTIONS)):
            if value not in known:
                raise UniWorldError(f"{name} is {shown(value)}; it must be one of {', '.join(known)}.")
        target = usable_device(device)
        if self.compile != COMPILES[0]:
            _try_compiler(target)
        if self.attention != ATTENTIONS[0]:
            _try_attention(self.attention, dtype, target)

    def check_network(self, network: nn.Module) -> None:
        """Check that a network can be run in this way; its weights may be on the meta device.

        Raises:
            UniWorldError: it has no blocks that can be compiled, or only one implementation of attention.
        """
        kind = type(network).__name__
        if self.attention != ATTENTIONS[0] and not hasattr(network, "set_attention_backend"):
            raise UniWorldError(
                f"attention is {self.attention}, and {kind} has only one implementation: set it to {ATTENTIONS[0]}."
            )
        if self.compile != COMPILES[0] and not _blocks(network):
            raise UniWorldError(
                f"compile is {self.compile}, and {kind} has no repeated blocks that diffusers can compile: set it to "
                f"{COMPILES[0]}."
            )

    def applied(self, part: Any) -> Any:
        """Set up the networks of a loaded part, and return it. Call it before the part is streamed; once is enough.

        Raises:
            UniWorldError: the part's networks cannot be set up in this way.
        """
        if self == Speed() or getattr(part, "speed", None) == self:
            return part
        networks = part.networks if isinstance(part, ComputeModule) else ()
        if not networks:
            raise UniWorldError(
                f"compile is {self.compile} and attention is {self.attention}, which this model cannot use: set them to "
                f"{COMPILES[0]} and {ATTENTIONS[0]}."
            )
        for network in networks:
            self.check_network(network)
            if self.attention != ATTENTIONS[0]:
                _set_attention(network, self.attention)
            if self.compile != COMPILES[0]:
                for block in _blocks(network):
                    block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
            network.forward = self._explained(network.forward)
        part.speed = self
        return part

    def _explained(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Turn errors of a network's `forward` into ones that name these settings."""

        @functools.wraps(forward)
        def explained(*args: Any, **kwargs: Any) -> Any:
            try:
                return forward(*args, **kwargs)
            except (torch.OutOfMemoryError, UniWorldError):
                raise
            except Exception as error:
                settings = [f"compile={self.compile}"] if self.compile != COMPILES[0] else []
                settings += [f"attention={self.attention}"] if self.attention != ATTENTIONS[0] else []
                raise UniWorldError(
                    f"The model failed with {' and '.join(settings)} ({_reason(error)}): set compile to {COMPILES[0]} "
                    f"and attention to {ATTENTIONS[0]}."
                ) from error

        return explained


def _reason(error: BaseException) -> str:
    """Return what an error says in short, without the name of a wrapper of torch.compile."""
    while error.__cause__ is not None and type(error).__module__.startswith("torch._"):
        error = error.__cause__
    # torch's own wrapper says in the first line only which backend raised, and in the next what.
    lines = [line for text in str(error).splitlines() if (line := text.strip().rstrip(".:"))]
    said = " ".join(lines[:2] if lines and lines[0].endswith("raised") else lines[:1]) or "no message"
    return textwrap.shorten(f"{type(error).__name__}: {said}", 240, placeholder=" ...")


# Kinds of devices for which the compiler works. It needs some seconds, even for a function that it has compiled before.
_compiling: set[str] = set()


def _compiler_error(kind: str) -> str | None:
    if kind in _compiling:
        return None
    if not hasattr(torch, "compile"):  # a build without it
        return "this build of torch has no torch.compile"
    try:
        torch.compile(lambda x: torch.sin(x) * 2 + 1)(torch.ones(64, device=kind))
    except Exception as error:
        return _reason(error)
    _compiling.add(kind)
    return None


def _try_compiler(device: torch.device) -> None:
    reason = _compiler_error(device.type)
    if reason is not None:
        needs = "a C++ compiler" if device.type == "cpu" else "triton and a C compiler"
        raise UniWorldError(
            f"compile does not work on {device} here ({reason}): install {needs}, or set compile to {COMPILES[0]}."
        )


def _try_attention(name: str, dtype: torch.dtype, device: torch.device) -> None:
    try:
        from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

        query = torch.zeros(1, 16, 2, 128, dtype=dtype, device=device)
        with attention_backend(name), torch.inference_mode():  # type: ignore[arg-type]
            dispatch_attention_fn(query, query, query)
    except Exception as error:
        raise UniWorldError(
            f"attention {name!r} does not work in {str(dtype).removeprefix('torch.')} on {device} here "
            f"({_reason(error)}): set attention to {ATTENTIONS[0]}, or install what it needs."
        ) from error


def _set_attention(network: nn.Module, name: str) -> None:
    from diffusers.models.attention_dispatch import attention_backend

    logger = logging.getLogger(_CALLER)
    quiet, logger.disabled = logger.disabled, True  # it warns that attention backends are experimental
    try:
        # Within the context, since diffusers also sets the default of all other models of the process.
        with attention_backend("native"):
            network.set_attention_backend(name)  # type: ignore[operator]
    finally:
        logger.disabled = quiet


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks that diffusers names as repeated, and compiles."""
    repeated = getattr(network, "_repeated_blocks", None) or ()
    return [module for module in network.modules() if type(module).__name__ in repeated]
