"""The parts of a model: opened and checked once, and loaded on first use, in any storage and on any device.

A `NetworkPart` describes one network: how it is built, which tensors of which files are its weights, the tokenizer or
picture processor that it needs, and the object made from all of these. A `PartSet` holds the parts of one model by name.
The library, the nodes and the trainer all take their parts from it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from ..errors import UniWorldError
from .encodings import FLOATS
from .names import LISTED, SAME_NAMES, Names, some
from .storage import Precision, Storage, choose_storage, set_compute
from .weights import Shards

Built = TypeVar("Built")
Built_co = TypeVar("Built_co", covariant=True)


class Part(Protocol[Built_co]):
    """One part of a model, stored in files."""

    def check(self) -> None:
        """Check the part's files against its configuration, without reading weights. Repeated calls do nothing.

        Raises:
            UniWorldError: a file or tensor is missing or damaged, or does not match. The message names it.
        """

    def load(self, chosen: torch.dtype | Storage | None, device: torch.device | str) -> Built_co:
        """Check the part, read its weights, and return it.

        Args:
            chosen: how the weights are stored. A dtype stands for `FloatStorage`, None for the default of `choose_storage`.

        Raises:
            UniWorldError: as `check`, or the device or dtype is not usable.
        """


class NetworkPart(Generic[Built]):
    """A network with its weights in safetensors files, and its tokenizer or picture processor.

    Args:
        build: builds the network with its parameters on the meta device (`weights.build`).
        shards: the files.
        make: makes the part from the loaded network and the results of `read`.
        names: maps tensor names between files and network.
        optional: names in the network that the files may lack (tied weights).
        compute: patterns (`fnmatch`) of names of layers whose weights every storage must keep in the compute dtype, because
            the network's own code reads the dtype from them.
        precise: patterns of names of layers that are never quantized, because the result is sensitive to them.
        read: reads the other files of the part, such as its tokenizer. Called once, however often the part is loaded.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        shards: Shards,
        make: Callable[..., Built],
        names: Names = SAME_NAMES,
        *,
        optional: Sequence[str] = (),
        compute: Sequence[str] = (),
        precise: Sequence[str] = (),
        read: Callable[[], tuple[Any, ...]] = tuple,
    ) -> None:
        self.build, self.shards, self.names = build, shards, names
        self._make, self._optional, self._read = make, tuple(optional), read
        self._compute, self._precise = tuple(compute), tuple(precise)
        self._checked = False

    @cached_property
    def in_network(self) -> dict[str, str]:
        """The part's tensors: {name in the files: name in the network}."""
        pairs = ((name, self.names.in_module(name)) for name in self.shards.shapes)
        return {name: key for name, key in pairs if key is not None}

    @cached_property
    def extras(self) -> tuple[Any, ...]:
        """The results of `read`, such as a tokenizer or a picture processor."""
        return self._read()

    def check(self) -> None:
        """Check that names, shapes and dtypes in the files match the network, and that `read` succeeds (`Part.check`)."""
        if self._checked:
            return
        expected = {name: tuple(tensor.shape) for name, tensor in self.build().state_dict().items()}
        shards, found = self.shards, self.in_network
        problems = [problem for name, key in found.items() if (problem := self._misfit(name, expected.get(key)))]
        missing = sorted(set(expected) - set(found.values()) - set(self._optional))
        unknown = sorted(name for name, key in found.items() if key not in expected)
        if missing:
            problems.append(f"missing: {some([shards.with_file(self.names.in_file(name)) for name in missing])}")
        if unknown:
            problems.append(f"unknown: {some([f'{name} in {shards.files[name].name}' for name in unknown])}")
        if problems:
            raise UniWorldError(
                f"The weights in {shards.folder} do not match their configuration: "
                f"{'; '.join(problems[:LISTED])}. Use weights and config.json from the same checkpoint."
            )
        _ = self.extras
        self._checked = True

    def load(self, chosen: torch.dtype | Storage | None = None, device: torch.device | str = "cpu") -> Built:
        """Read tensor by tensor, straight to storage and device (`Part.load`).

        Computed buffers, such as rotary frequencies, keep their dtype, as when transformers loads a model.
        """
        self.check()
        storage = choose_storage(chosen, device).for_part(self.file_bytes, device)
        network = self.build()
        for name, tensor in self.shards.read(self.in_network):
            key = self.in_network[name]
            storage.put(network, key, tensor, device, self.precision(key))
        for module in network.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[key] = buffer.to(device)
        made = self._make(network, *self.extras)
        if isinstance(made, nn.Module):
            set_compute(made, storage.compute, device)
        return made

    @property
    def file_bytes(self) -> int:
        """Bytes that the part's weights take in the files."""
        return sum(map(self.shards.nbytes, self.in_network))

    @cached_property
    def quantizable(self) -> frozenset[str]:
        """Names in the files of the weights that may be quantized: those of linear layers that are not sensitive."""
        linear = {f"{path}.weight" for path, layer in self.build().named_modules() if type(layer) is nn.Linear}
        free = {key for key in linear if self.precision(key) is Precision.ANY}
        return frozenset(name for name, key in self.in_network.items() if key in free)

    def precision(self, name: str) -> Precision:
        """Return the precision that the tensor of that name in the network needs."""
        layer = name.rpartition(".")[0]
        if any(fnmatchcase(layer, pattern) for pattern in self._compute):
            return Precision.COMPUTE
        return Precision.FLOAT if any(fnmatchcase(layer, pattern) for pattern in self._precise) else Precision.ANY

    def _misfit(self, name: str, expected: tuple[int, ...] | None) -> str | None:
        shape, kind, where = self.shards.shapes[name], self.shards.dtypes[name], self.shards.files[name].name
        if expected is not None and shape != expected:
            return f"{name} in {where} has shape {list(shape)}, expected {list(expected)}"
        if expected is not None and kind not in FLOATS and name not in self.shards.encodings:
            return f"{name} in {where} has dtype {kind}, expected floating point"
        return None


class JoinedPart(Generic[Built]):
    """A part made from other parts.

    Args:
        members: the other parts.
        make: makes the part from the loaded members.
    """

    def __init__(self, members: Sequence[Part[Any]], make: Callable[..., Built]) -> None:
        self.members, self.make = tuple(members), make

    def check(self) -> None:
        """Check every member (`Part.check`)."""
        for member in self.members:
            member.check()

    def load(self, chosen: torch.dtype | Storage | None = None, device: torch.device | str = "cpu") -> Built:
        """Load the members and make the part (`Part.load`). Other parts do not share these members."""
        return self.make(*(member.load(chosen, device) for member in self.members))


class PartSet:
    """The parts of an opened model by name. Nothing is read before it is needed.

    Args:
        describe: {name: function that returns the part}. Called on the first access to the part; its UniWorldError says
            why the model lacks the part.
        present: names of the parts whose files the model has. `check` checks these.
    """

    def __init__(self, describe: Mapping[str, Callable[[], Part[Any]]], present: Sequence[str]) -> None:
        self._describe, self.present = dict(describe), tuple(present)
        self._parts: dict[str, Part[Any]] = {}
        self._cached: dict[tuple[Part[Any], Storage, str], Any] = {}
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> Part[Any]:
        """Open the part of that name. Raises UniWorldError if the model lacks it or its files are invalid."""
        with self._lock:
            if name not in self._parts:
                self._parts[name] = self._describe[name]()
            return self._parts[name]

    def network(self, name: str) -> NetworkPart[Any]:
        """Open the part of that name, which must be a `NetworkPart`."""
        part = self[name]
        assert isinstance(part, NetworkPart), f"{name} is not a network"
        return part

    def check(self) -> None:
        """Check every part in `present`. Raises UniWorldError as `Part.check` does."""
        for name in self.present:
            self[name].check()

    def get(self, name: str, chosen: torch.dtype | Storage | None, device: torch.device | str) -> Any:
        """Return the loaded part of that name. It is cached for each storage and device.

        Raises:
            UniWorldError: as `__getitem__` and `Part.load`.
        """
        with self._lock:
            return self._get(self[name], choose_storage(chosen, device), device)

    def _get(self, part: Part[Any], storage: Storage, device: torch.device | str) -> Any:
        key = part, storage, str(device)
        if key not in self._cached:
            if isinstance(part, JoinedPart):
                self._cached[key] = part.make(*(self._get(member, storage, device) for member in part.members))
            else:
                self._cached[key] = part.load(storage, device)
        return self._cached[key]

    def loaded(self) -> set[str]:
        """Return the names of the parts that are cached, in any storage and on any device."""
        cached = {part for part, _, _ in self._cached}
        return {name for name, part in self._parts.items() if part in cached}

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Drop the parts that are loaded inside the block from the cache when it ends, which frees their memory."""
        before = set(self._cached)
        try:
            yield
        finally:
            with self._lock:
                for key in set(self._cached) - before:
                    del self._cached[key]
