"""The public class `UniWorld`: reference, encode, sample, decode, understand and route, with parts loaded on first use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .backbones.flux_text import TextEncoders
from .backbones.qwen_vl import MAX_NEW_TOKENS
from .errors import UniWorldError, shown
from .families.family import Family, LoadedParts, Route, encode_with_negative
from .families.placement import PlacedParts
from .families.table import family_by_config, family_of
from .images.pictures import Picture
from .images.sizes import Size
from .loading.folders import ModelFolders, find_folders
from .loading.options import ATTENTIONS, COMPILES, OFFLOADS, STORAGES
from .loading.settings import read_json
from .loading.speed import Speed
from .loading.storage import Storage, choose_storage, named_storage
from .lora.matching import layers_of_painter
from .lora.painter import Lora, LoraPainter, check_strength, open_lora
from .prompts.conversation import Conversation, Prompt, as_conversations
from .prompts.reference import Reference, References, make_references
from .prompts.scope import Scope, read_scope
from .sampling import flow
from .sampling.cache import CACHES
from .sampling.condition import Condition
from .sampling.latents import LatentFormat
from .sampling.sampler import sequence_length
from .sampling.seeds import seeds_of_items
from .sampling.solvers import SOLVERS

if TYPE_CHECKING:
    from .backbones.flux_dit import DiT
    from .backbones.flux_vae import VAE
    from .backbones.qwen_vl import VLM
    from .backbones.siglip import SigLIP
    from .families.uniworld_v1.projectors import Projectors
    from .families.uniworld_v1.understanding import Understanding


class UniWorld:
    """A complete model of any family.

    Parts are loaded on first use and can be used on their own: `dit`, `vae`, `siglip`, `text`, and `understanding` with `vlm`
    and `projectors`. The annotated types are those of UniWorld-V1.

    Attributes:
        family: the model's family.
        checkpoint, flux_folder, siglip_folder: the folders with its files.
        parts: the parts, opened from these folders.
        storage: how the weights are stored in memory.
        device: the compute device.
    """

    def __init__(
        self,
        family: Family,
        folders: ModelFolders,
        storage: torch.dtype | Storage | None,
        device: torch.device | str,
        offload: str = "none",
        speed: Speed | None = None,
    ) -> None:
        self.family = family
        self.checkpoint, self.flux_folder, self.siglip_folder = folders.checkpoint, folders.flux, folders.siglip
        self.parts = family.open(folders)
        self.storage, self.device = choose_storage(storage, device), device
        self._placed = PlacedParts(self.parts, self.storage, device, offload, speed)
        self._loaded = LoadedParts(self._placed.on_device)
        self._loras: list[tuple[Lora, float]] = []

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        flux: str | Path | None = None,
        siglip: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        storage: str | Storage = "auto",
        offload: str = "auto",
        compile: str = COMPILES[0],
        attention: str = ATTENTIONS[0],
    ) -> UniWorld:
        """Open a model. Names, shapes and dtypes in all files are checked now; weights are read on first use.

        Args:
            checkpoint: folder of a known family, such as UniWorld-V1 in its published format, or name of a shipped model.
            flux: FLUX.1-dev folder in diffusers layout with VAE, CLIP and T5, or name of a shipped model.
            siglip: SigLIP2 folder (siglip2-so400m-patch16-512) for references, or name of a shipped model.
            dtype: compute dtype, and dtype of unquantized weights. None chooses bfloat16, or float32 on a CPU without bfloat16
                instructions.
            device: the compute device.
            storage: how the weights of linear layers are stored. "auto" keeps quantized weights as in the files and stores
                others in `dtype`. "bfloat16", "int8" (one scale per row), "fp8" and "nf4" (needs bitsandbytes) convert all
                weights. A `Storage` has its own dtype.
            offload: what happens to parts on a GPU. "auto" moves the least recently used ones to system RAM, and streams a part
                that does not fit block by block. "blocks" streams all large parts. "disk" does too, and keeps no copy in RAM.
                "none" leaves every part on the GPU. On a CPU, only "blocks" and "disk" have an effect.
            compile: "blocks" compiles the blocks of the DiT with torch.compile, when a size of picture first runs.
            attention: implementation of attention in the DiT, by its name in diffusers, one of `ATTENTIONS`. "auto" is torch's
                own choice.

        Raises:
            UniWorldError: the family is unknown or does not use a given folder; the device, the compiler or an installed
                library does not support the storage, `compile` or `attention`; a file is missing or damaged, or does not match
                the configuration (the message names file, tensor and shapes).
        """
        if offload not in OFFLOADS:
            raise UniWorldError(f"offload is {shown(offload)}; it must be one of {', '.join(OFFLOADS)}.")
        if not isinstance(storage, (str, Storage)):
            raise UniWorldError(
                f"storage is {shown(storage)}; it must be a name, one of {', '.join(STORAGES)}, or a Storage. For a dtype, "
                "use dtype."
            )
        held = named_storage(storage, dtype, device) if isinstance(storage, str) else choose_storage(storage, device)
        speed = Speed(compile, attention)
        speed.check(held.compute, device)
        folders = find_folders(checkpoint, flux, siglip)
        family = family_of(folders.checkpoint)
        for what in ("flux", "siglip"):
            if getattr(folders, what) is not None and what not in family.companions:
                raise UniWorldError(f"{family.name} does not use a {what} folder, but one was given: leave it out.")
        model = cls(family, folders, held, device, offload, speed)
        model.check()
        if speed != Speed():
            speed.check_network(model.parts.network("dit").build())
        return model

    def check(self) -> None:
        """Check all files against their configuration, without reading weights. Repeated calls do nothing.

        Raises:
            UniWorldError: a file or tensor is missing or damaged, or does not match. The message names it.
        """
        self.parts.check()

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype of all parts except V1's routing head, which is always float32."""
        return self.storage.compute

    def part(self, name: str, dtype: torch.dtype | Storage | None = None) -> Any:
        """Return a loaded part by its name in `parts`. `dtype` replaces the model's storage for this part."""
        return self._placed.part(name, dtype)

    @property
    def understanding(self) -> Understanding:
        return self.part("understanding")

    @property
    def vlm(self) -> VLM:
        return self.part("vlm")

    @property
    def projectors(self) -> Projectors:
        return self.part("projectors")

    @property
    def dit(self) -> DiT:
        return self.part("dit")

    @property
    def vae(self) -> VAE:
        return self.part("vae")

    @property
    def text(self) -> TextEncoders:
        return TextEncoders(lambda: self.part("clip"), lambda: self.part("t5"))

    @property
    def siglip(self) -> SigLIP:
        return self.part("siglip")

    @cached_property
    def scope(self) -> Scope | None:
        """What a small model such as nano knows; None for a model without such limits."""
        return read_scope(self.checkpoint)

    def load_lora(self, source: str | Path, strength: float = 1.0, alpha: float | None = None) -> UniWorld:
        """Add a LoRA, which `sample` applies with those that were added before. No weight changes, in any storage.

        Args:
            source: a safetensors file in the names of PEFT, diffusers, ComfyUI or kohya's scripts, or a folder with PEFT's
                `adapter_config.json`.
            strength: 1 as trained (alpha / rank), 0 without effect.
            alpha: replaces alpha of the file and of its configuration. Without any alpha, a LoRA is applied as if alpha were
                its rank.

        Returns:
            The model itself.

        Raises:
            UniWorldError: the file is missing, damaged or not a plain LoRA, or belongs to another model. Modules and
                shapes that do not fit are named.
        """
        check_strength(strength)
        lora = open_lora(source, layers_of_painter(self.parts), alpha)
        self._loras.append((lora, strength))
        return self

    @property
    def loras(self) -> tuple[tuple[Path, float], ...]:
        """The file and the strength of each LoRA."""
        return tuple((lora.file.file, strength) for lora, strength in self._loras)

    def unload_loras(self) -> UniWorld:
        """Remove all LoRAs. The model paints as if none had been loaded, bit for bit."""
        self._loras.clear()
        return self

    @property
    def latent_format(self) -> LatentFormat:
        return self.parts.facts.latent_format

    def reference(self, pictures: Sequence[Picture], use_siglip: bool = True) -> list[Reference]:
        """Make the references of one item, in order, for `encode`, `understand` and `route`.

        Args:
            pictures: PIL pictures or (H, W, 3) tensors, of any sizes.
            use_siglip: False leaves out the SigLIP features, so that only the VLM sees the pictures. It makes no difference
                to models without SigLIP.

        Raises:
            UniWorldError: a picture is invalid, or the model needs a SigLIP folder and none was given.
        """
        if not isinstance(pictures, (list, tuple)):
            raise UniWorldError(
                f"reference takes a list of pictures, but got a {type(pictures).__name__}: write [picture]."
            )
        return make_references(pictures, self.siglip if use_siglip and "siglip" in self.parts else None)

    def size_for(self, height: float, width: float, side: int | None = None) -> Size:
        """Return the size to paint for a picture of this size, such as the first reference of an edit.

        Args:
            side: it has about the area of a square with this side in pixels; None for the model's native size.

        Raises:
            UniWorldError: a side is not positive, or the area is invalid.
        """
        facts = self.parts.facts
        return facts.size_for(height, width, facts.native_side if side is None else side)

    def encode(
        self,
        prompt: Prompt | Sequence[Prompt],
        refs: References | Sequence[References] | None = None,
        use_t5: bool = True,
        t5_length: int | None = None,
        negative: str | None = "",
    ) -> Condition:
        """Encode a prompt, a conversation, or a batch of them to a condition.

        Args:
            prompt: the instruction, a `Conversation` that ends with it, or a list with any mix of both.
            refs: references from `reference`, shared by all prompts, or a list with one list per prompt; None for
                text to image. A conversation has its references in its turns instead.
            use_t5: put T5's tokens of the plain prompt in front of the condition, and let CLIP pool the prompt. Otherwise CLIP
                pools "". Of a conversation, both see only the text of the last turn. For models in which T5 is optional;
                it makes no difference to others.
            t5_length: number of T5 tokens, padded; None for the model's default.
            negative: the negative prompt, for models whose guidance leads away from one, such as Qwen-Image-Edit; if blank,
                the model's default. None encodes none, which sampling at a guidance of 1 does not use.

        Warns:
            UserWarning: a small model does not know words or pictures; once per call.

        Raises:
            UniWorldError: a prompt is empty, a conversation does not end with the user's turn or exceeds the model's context
                length, widths do not match, no FLUX folder was given, or a negative prompt was given to a model without one.
        """
        conversations = as_conversations(prompt, refs)
        self._warn_of_unknown(conversations)
        length = self.family.t5_length if t5_length is None else t5_length
        return encode_with_negative(self.family, self._loaded, conversations, length if use_t5 else None, negative)

    def sample(
        self,
        cond: Condition,
        height: int = 1024,
        width: int = 1024,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        noise: torch.Tensor | None = None,
        sigmas: torch.Tensor | None = None,
        callback: Callable[[flow.Step], None] | None = None,
        cache: str = CACHES[0],
        solver: str = SOLVERS[0],
    ) -> torch.Tensor:
        """Paint unscaled VAE latents, such as (B, 16, H/8, W/8) for FLUX.

        Args:
            cond: the condition from `encode`. One item may have several seeds, or several items one seed.
            height, width: size in pixels, multiples of 16.
            steps: number of steps; None for the published number.
            guidance: the model's guidance, such as FLUX's embedded one; None for the published one.
            seed: one seed, or one per item. A seed gives the same picture alone and in a batch.
            noise: starting noise (B, 16, H/8, W/8) on the DiT's side, to use instead of a seed.
            sigmas: schedule (steps + 1) to use instead of the published one.
            callback: called after every step with a `flow.Step`; for UniPic, with a `Revealed`. An exception from it ends the
                run.
            cache: "light" or "strong" skips blocks whose result hardly changes from step to step; see `CACHES`.
            solver: "euler", or "dpm2" for fewer steps; see `SOLVERS`.

        Raises:
            UniWorldError: a model of another family encoded the condition; size, seeds or schedule are invalid or do not match;
                or a value is not finite (the message names the step).
        """
        cond.check_family(self.family.name)
        start = seeds_of_items(seed, len(cond)) if noise is None else noise
        size = Size(height, width)
        latents = self.latent_format
        tokens = len(start) * sequence_length(cond, latents, latents.shape(1, size))
        low_rank = sum(lora.nbytes for lora, _ in self._loras)
        dit = self._placed.on_device("dit", tokens * self.parts.facts.token_bytes + low_rank)
        for lora, strength in self._loras:
            dit = LoraPainter(dit, lora, strength)
        return self.family.paint(
            dit,
            cond,
            size,
            start,
            self.family.steps if steps is None else steps,
            self.family.guidance if guidance is None else guidance,
            sigmas=sigmas,
            callback=callback,
            solver=solver,
            cache=cache,
        )

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Decode unscaled VAE latents (B, 16, H/8, W/8) to pictures (B, H, W, 3) in 0..1."""
        pixels = z.shape[0] * z.shape[-2] * z.shape[-1] * self.latent_format.factor**2 if z.ndim >= 4 else 0
        return self._placed.on_device("vae", pixels * self.parts.facts.pixel_bytes).decode(z)

    def understand(
        self,
        prompt: Prompt | Sequence[Prompt],
        refs: References | Sequence[References] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> str | list[str]:
        """Answer a prompt or conversation in text, or a list of them in a list. Greedy decoding by default.

        `prompt`, `refs` and the warning are as in `encode`, the other arguments as in `VLM.generate`.
        """
        conversations = as_conversations(prompt, refs)
        self._warn_of_unknown(conversations)
        answers = self.family.understand(self._loaded, conversations, max_new_tokens, temperature, seed, callback)
        return answers[0] if isinstance(prompt, (str, Conversation)) else answers

    def route(self, prompt: Prompt | Sequence[Prompt], refs: References | Sequence[References] | None = None) -> Route:
        """Decide whether each prompt, or the last turn of each conversation, asks for a picture.

        Arguments as in `encode`. Raises UniWorldError if the model has no routing head.
        """
        return self.family.route(self._loaded, as_conversations(prompt, refs))

    def _warn_of_unknown(self, conversations: Sequence[Conversation]) -> None:
        """Warn the caller of the public method about what the model does not know."""
        found = [] if self.scope is None else [self.scope.outside(conversation) for conversation in conversations]
        if any(found):
            warnings.warn(" ".join(dict.fromkeys(filter(None, found))), stacklevel=3)

    @staticmethod
    def checkpoint_layout(
        config: Mapping[str, Any] | str | Path, siglip_width: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Return {tensor name: shape} of a checkpoint with this config.json, computed on the meta device.

        Args:
            config: the object in `config.json`, or the file's path.
            siglip_width: width of the SigLIP features, which config.json does not store; None for the published 1152.
        """
        raw = read_json(Path(config)) if isinstance(config, (str, Path)) else config
        return family_by_config(raw).layout(raw, siglip_width)
