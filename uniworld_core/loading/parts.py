"""The parts of a model: opened and checked once, each loaded when it is asked for, in the storage and on the device wanted.

A `NetworkPart` describes one network: how it is built, which tensors of which files are its weights, what reads for it
(a tokenizer, a picture processor), and what is made of all that. A `PartSet` has the parts of one model by name; the
library, the nodes and the trainer take them from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from ..errors import UniWorldError
from .storage import Storage, choose_storage, set_compute
from .weights import LISTED, SAME_NAMES, Names, Shards, some

Built = TypeVar("Built")
Built_co = TypeVar("Built_co", covariant=True)


class Part(Protocol[Built_co]):
    """One part of a model, in files."""

    def check(self) -> None:
        """Hold the part's files against its configuration, without reading a weight; once, and then no more.

        Raises:
            UniWorldError: names what is missing, damaged or does not fit.
        """

    def load(self, chosen: torch.dtype | Storage | None, device: torch.device | str) -> Built_co:
        """The part with its weights, read now, checked before.

        Args:
            chosen: how the weights are held; a dtype is `FloatStorage`, None the one of `choose_storage`.

        Raises:
            UniWorldError: as `check`, or the device or dtype is none that can hold a model.
        """


class NetworkPart(Generic[Built]):
    """A network whose weights lie in safetensors, with what reads for it.

    Args:
        build: makes the network, its parameters on the meta device (`weights.build`).
        shards: the files.
        make: the part, of the loaded network and of what `read` gave.
        names: how the network's tensors are called in the files.
        optional: names in the network that the files may lack (tied weights).
        plain: ends of names of layers that every storage must hold as plain floats.
        read: reads what lies beside the weights; called once, for all that is made of the part.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        shards: Shards,
        make: Callable[..., Built],
        names: Names = SAME_NAMES,
        *,
        optional: Sequence[str] = (),
        plain: Sequence[str] = (),
        read: Callable[[], tuple[Any, ...]] = tuple,
    ) -> None:
        self.build, self.shards, self.names = build, shards, names
        self._make, self._optional, self._plain, self._read = make, tuple(optional), tuple(plain), read
        self._checked = False

    @cached_property
    def in_network(self) -> dict[str, str]:
        """{name in the files: name in the network} of the part's tensors."""
        pairs = ((name, self.names.in_module(name)) for name in self.shards.shapes)
        return {name: key for name, key in pairs if key is not None}

    @cached_property
    def beside(self) -> tuple[Any, ...]:
        """What lies beside the weights: a tokenizer, a picture processor."""
        return self._read()

    def check(self) -> None:
        """As `Part.check`: names, shapes and types of the tensors, and what lies beside them."""
        if self._checked:
            return
        expected = {name: tuple(tensor.shape) for name, tensor in self.build().state_dict().items()}
        shards, found = self.shards, self.in_network
        problems = [problem for name, key in found.items() if (problem := self._misfit(name, expected.get(key)))]
        missing = sorted(set(expected) - set(found.values()) - set(self._optional))
        unknown = sorted(name for name, key in found.items() if key not in expected)
        if missing:
            problems.append(f"missing: {some([shards.home(self.names.in_file(name)) for name in missing])}")
        if unknown:
            problems.append(f"unknown: {some([f'{name} in {shards.files[name].name}' for name in unknown])}")
        if problems:
            raise UniWorldError(
                f"The weights in {shards.folder} do not fit the configuration beside them: "
                f"{'; '.join(problems[:LISTED])}. Use weights and config.json of one and the same checkpoint."
            )
        _ = self.beside
        self._checked = True

    def load(self, chosen: torch.dtype | Storage | None = None, device: torch.device | str = "cpu") -> Built:
        """As `Part.load`: tensor by tensor, straight to its storage and device; computed buffers keep their dtype, as in
        transformers' own loading.
        """
        storage = choose_storage(chosen, device)
        self.check()
        network = self.build()
        storage.prepare(network, self._plain)
        for name, tensor in self.shards.read(self.in_network):
            storage.put(network, self.in_network[name], tensor, device)
        for module in network.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[key] = buffer.to(device)
        made = self._make(network, *self.beside)
        if isinstance(made, nn.Module):
            set_compute(made, storage.compute, device)
        return made

    def _misfit(self, name: str, expected: tuple[int, ...] | None) -> str | None:
        shape, kind, where = self.shards.shapes[name], self.shards.dtypes[name], self.shards.files[name].name
        if expected is not None and shape != expected:
            return f"{name} in {where} has shape {list(shape)}, expected {list(expected)}"
        if expected is not None and not kind.startswith(("F", "BF")):
            return f"{name} in {where} has numbers of type {kind}, expected floating point"
        return None


class JoinedPart(Generic[Built]):
    """A part that is made of others.

    Args:
        members: the others.
        make: makes it of them, loaded.
    """

    def __init__(self, members: Sequence[Part[Any]], make: Callable[..., Built]) -> None:
        self.members, self.make = tuple(members), make

    def check(self) -> None:
        """As `Part.check`, of every member."""
        for member in self.members:
            member.check()

    def load(self, chosen: torch.dtype | Storage | None = None, device: torch.device | str = "cpu") -> Built:
        """As `Part.load`; the members are its own."""
        return self.make(*(member.load(chosen, device) for member in self.members))


class PartSet:
    """The parts of one opened model by name, of which nothing is read before it is needed.

    Args:
        describe: {name: gives the part}, called when the part is first asked for; what it raises says why there is none.
        present: names of the parts that `check` checks: those whose files the model has.
    """

    def __init__(self, describe: Mapping[str, Callable[[], Part[Any]]], present: Sequence[str]) -> None:
        self._describe, self.present = dict(describe), tuple(present)
        self._parts: dict[str, Part[Any]] = {}
        self._held: dict[tuple[Part[Any], Storage, str], Any] = {}
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> Part[Any]:
        """The part of that name, opened. Raises UniWorldError if the model has none, or its files cannot be used."""
        with self._lock:
            if name not in self._parts:
                self._parts[name] = self._describe[name]()
            return self._parts[name]

    def network(self, name: str) -> NetworkPart[Any]:
        """The part of that name, which is a network with weights of its own."""
        part = self[name]
        assert isinstance(part, NetworkPart), f"{name} is no network"
        return part

    def check(self) -> None:
        """Check every part that is present. Raises UniWorldError naming what is missing, damaged or does not fit."""
        for name in self.present:
            self[name].check()

    def get(self, name: str, chosen: torch.dtype | Storage | None, device: torch.device | str) -> Any:
        """The loaded part of that name: loaded if this is the first time with this storage and device, and remembered.

        Raises:
            UniWorldError: as `__getitem__` and `Part.load`.
        """
        with self._lock:
            return self._get(self[name], choose_storage(chosen, device), device)

    def _get(self, part: Part[Any], storage: Storage, device: torch.device | str) -> Any:
        key = part, storage, str(device)
        if key not in self._held:
            if isinstance(part, JoinedPart):
                self._held[key] = part.make(*(self._get(member, storage, device) for member in part.members))
            else:
                self._held[key] = part.load(storage, device)
        return self._held[key]

    def loaded(self) -> set[str]:
        """Names of the parts that are remembered, in any storage and on any device."""
        held = {part for part, _, _ in self._held}
        return {name for name, part in self._parts.items() if part in held}

    @contextmanager
    def passing(self) -> Iterator[None]:
        """What is loaded within it is forgotten at its end, and its memory is free."""
        before = set(self._held)
        try:
            yield
        finally:
            with self._lock:
                for key in set(self._held) - before:
                    del self._held[key]
