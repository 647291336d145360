"""The values of the `UNIWORLD_*` wires: model parts that load on first use, under the host's memory management."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import host

if TYPE_CHECKING:
    import torch

    from ...uniworld_core import Conversation
    from ...uniworld_core.families.family import (
        Family,
        FamilyParts,
        LoadedParts,
        PaintingFacts,
        PreparedPrompt,
        Route,
    )
    from ...uniworld_core.loading.folders import ModelFolders
    from ...uniworld_core.loading.speed import Speed
    from ...uniworld_core.loading.storage import Storage
    from ...uniworld_core.lora.matching import NetworkLayers
    from ...uniworld_core.prompts.scope import Scope
    from ...uniworld_core.sampling.condition import Condition
    from .wires import Emptyable, SiglipWire, TextEncoder, TextPooler, TextWire, Wired

T = TypeVar("T")
EmptyableWire = TypeVar("EmptyableWire", bound="Emptyable")

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class HeldPart(Generic[T]):
    """One part of a model, under the host's memory management.

    Attributes:
        parts: all parts of the model.
        name: name of this part.
        storage: how its weights are stored.
        device: one of the host's devices.
        offload: one of the core's `OFFLOADS`.
        speed: how its networks are run; None for the defaults.
    """

    parts: FamilyParts
    name: str
    storage: Storage
    device: str
    offload: str = "auto"
    speed: Speed | None = None
    _managed: host.Managed[Any] | None = field(default=None, repr=False)

    @property
    def available(self) -> bool:
        """Whether the model's family has this part. Using one that it lacks is an error that names it."""
        return self.name in self.parts

    def on_device(self, working_memory: int = 0) -> T:
        """Return the part on its compute device; the first call loads it.

        Args:
            working_memory: bytes to keep free in addition to the weights.
        """
        from ...uniworld_core.loading.storage import set_compute

        here = host.current()
        # Loading a large part can take minutes, so a cancelled run stops before it.
        here.check_interrupt()
        if self._managed is None:

            def load() -> Any:
                part = self.parts[self.name].load(self.storage, here.offload_device(self.device))
                return part if self.speed is None else self.speed.applied(part)

            self._managed = here.manage(load(), self.device, load, self.offload, self.name)
        part: T = self._managed.on_device(working_memory)
        # Set explicitly, because the host may leave weights that do not fit on another device.
        set_compute(part, device=here.load_device(self.device))
        return part


@dataclass(kw_only=True)
class PaintingPart(HeldPart[Any]):
    """The DiT or the VAE, with facts about the model that are known before it is loaded."""

    facts: PaintingFacts

    def layers(self) -> NetworkLayers:
        """Return the layers of its network. Raises UniWorldError if the painter takes no LoRA."""
        from ...uniworld_core.lora.matching import layers_of_painter

        return layers_of_painter(self.parts)


def connected(wire: EmptyableWire | None) -> EmptyableWire | None:
    """Return the value of an optional wire; None if it is not connected, or empty because the family lacks the part."""
    return wire if wire is not None and wire.available else None


@dataclass
class MemberPart:
    """A part that is a member of another part.

    Attributes:
        owner: the part that contains it.
        name: name of the attribute.
    """

    owner: Wired[Any]
    name: str

    @property
    def available(self) -> bool:
        """Whether the model's family has the owner."""
        return self.owner.available

    def on_device(self, working_memory: int = 0) -> Any:
        """Load the owner as `HeldPart` does, and return the member."""
        return getattr(self.owner.on_device(working_memory), self.name)


@dataclass
class TextParts:
    """FLUX's CLIP and T5."""

    clip: Wired[TextPooler]
    t5: Wired[TextEncoder]

    @property
    def available(self) -> bool:
        """Whether the model's family has both."""
        return self.clip.available and self.t5.available


@dataclass
class VLMPart:
    """The model's prompt reader: the functions of its family, applied to its parts.

    Attributes:
        family: the model's family.
        held: its parts by name.
        facts: facts about painting with the model.
        scope: the words and images that a small model such as nano knows; None if there is no such limit.
    """

    family: Family
    held: Mapping[str, Wired[Any]]
    facts: PaintingFacts
    scope: Scope | None = None
    _loaded: LoadedParts | None = field(default=None, repr=False)

    @property
    def loaded(self) -> LoadedParts:
        """The model's parts; each is loaded on first access."""
        if self._loaded is None:
            self._loaded = _lazily_loaded(self.held)
        return self._loaded

    def warn_of_unknown(self, conversation: Conversation) -> None:
        """Warn the user about words and images in a conversation that the model does not know."""
        if self.scope is not None and (sentence := self.scope.outside(conversation)) is not None:
            host.current().warn(sentence)

    def encode(
        self, conversation: Conversation, text: TextWire | None, t5_length: int, negative: str = ""
    ) -> Condition:
        """As `VLMWire.encode`."""
        from ...uniworld_core.families.family import encode_with_negative

        if text is None:
            return encode_with_negative(self.family, self.loaded, [conversation], negative=negative)
        # The connected CLIP and T5, which may belong to another model.
        loaded = _lazily_loaded({**self.held, "clip": text.clip, "t5": text.t5})
        return encode_with_negative(self.family, loaded, [conversation], t5_length, negative)

    def answer(
        self,
        conversation: Conversation,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        callback: Callable[[int], None],
    ) -> str:
        """As `VLMWire.answer`."""
        return self.family.understand(self.loaded, [conversation], max_new_tokens, temperature, seed, callback)[0]

    def prepare(self, conversation: Conversation) -> PreparedPrompt:
        """As `VLMWire.prepare`."""
        return self.family.prepare(self.loaded, conversation)

    def route(self, conversation: Conversation) -> Route:
        """As `VLMWire.route`."""
        return self.family.route(self.loaded, [conversation])


def _lazily_loaded(held: Mapping[str, Wired[Any]]) -> LoadedParts:
    from ...uniworld_core.families.family import LoadedParts

    return LoadedParts(lambda name, working_memory: held[name].on_device(working_memory))


@dataclass(frozen=True)
class ModelParts:
    """All parts of one model, before any weights are read."""

    vlm: VLMPart
    siglip: SiglipWire
    dit: PaintingPart
    vae: PaintingPart
    text: TextParts


def open_parts(
    family: Family,
    folders: ModelFolders,
    dtype_name: str,
    device: str,
    storage_name: str = "auto",
    offload: str = "auto",
    compile: str = "off",
    attention: str = "auto",
) -> ModelParts:
    """Open the parts of a model. Names and shapes are checked now; weights are read on first use.

    Raises:
        UniWorldError: files are missing, damaged or do not match, or the device, the compiler or an installed library does not
            support a setting; they are named.
    """
    from ...uniworld_core.families.family import PART_NAMES
    from ...uniworld_core.loading.speed import Speed
    from ...uniworld_core.prompts.scope import read_scope

    target = host.current().load_device(device)
    storage = storage_of(storage_name, dtype_name, target)
    speed = Speed(compile, attention)
    speed.check(storage.compute, target)
    parts = family.open(folders)
    parts.check()
    if speed != Speed():
        speed.check_network(parts.network("dit").build())
    own = [name for name in parts.names if name not in parts.containers]
    held: dict[str, Wired[Any]] = {
        name: HeldPart(parts, name, storage, device, offload) for name in (*PART_NAMES, *own)
    }
    facts = parts.facts
    held["dit"] = dit = PaintingPart(parts, "dit", storage, device, offload, speed, facts=facts)
    held["vae"] = vae = PaintingPart(parts, "vae", storage, device, offload, facts=facts)
    members = {name: MemberPart(held[owner], name) for name, owner in parts.containers.items()}
    return ModelParts(
        vlm=VLMPart(family, held | members, facts, read_scope(folders.checkpoint)),
        siglip=held["siglip"],
        dit=dit,
        vae=vae,
        text=TextParts(held["clip"], held["t5"]),
    )


def storage_of(name: str, dtype: str, device: torch.device) -> Storage:
    """Return the storage that the widgets `storage` and `dtype` select.

    Raises:
        UniWorldError: the device or an installed library does not support this storage.
    """
    from ...uniworld_core.loading.storage import named_storage

    return named_storage(name, torch_dtype(dtype, device), device)


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name. `auto` is bfloat16 on a GPU, as published, and float32 on a CPU."""
    import torch

    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return getattr(torch, name)
