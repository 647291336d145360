"""A model whole: reference, encode, sample, decode, understand, route, over parts that load when first used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .backbones.flux_text import T5_LENGTH, TextEncoders
from .backbones.qwen_vl import MAX_NEW_TOKENS
from .errors import UniWorldError
from .families.family import Family, LoadedParts, ModelFolders, Route
from .families.table import family_by_config, family_of
from .families.uniworld_v1.painting import GUIDANCE, STEPS
from .images.pictures import Picture
from .images.sizes import Size
from .loading.settings import read_json
from .loading.shipped import shipped_model
from .loading.storage import Storage, choose_storage, named_storage
from .prompts.conversation import Conversation, Prompt, as_conversations
from .prompts.reference import Reference, References, make_references
from .prompts.scope import Scope, read_scope
from .sampling import flow
from .sampling.condition import Condition
from .sampling.latents import LatentFormat
from .sampling.sampler import paint
from .sampling.seeds import check_seed

if TYPE_CHECKING:
    from .backbones.flux_dit import DiT
    from .backbones.flux_vae import VAE
    from .backbones.qwen_vl import VLM
    from .backbones.siglip import SigLIP
    from .families.uniworld_v1.projectors import Projectors
    from .families.uniworld_v1.understanding import Understanding


class UniWorld:
    """A whole model of any family. Parts are loaded when first used and may be used on their own: `dit`, `vae`, `siglip`,
    `text`, and `understanding` (`vlm`, `projectors`); their types are those of UniWorld-V1.

    Attributes:
        family: what the model can do, and how.
        checkpoint, flux_folder, siglip_folder: where its files lie.
        parts: what it is loaded from.
        storage: how the weights are held.
        device: where they compute.
    """

    def __init__(
        self, family: Family, folders: ModelFolders, storage: torch.dtype | Storage | None, device: torch.device | str
    ) -> None:
        self.family = family
        self.checkpoint, self.flux_folder, self.siglip_folder = folders.checkpoint, folders.flux, folders.siglip
        self.parts = family.open(folders)
        self.storage, self.device = choose_storage(storage, device), device
        self._loaded = LoadedParts(self.part)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        flux: str | Path | None = None,
        siglip: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        storage: str | Storage = "auto",
    ) -> UniWorld:
        """Open a model: the files of every folder given are checked now, by name, shape and type; weights are read when
        first used.

        Args:
            checkpoint: a folder of a known family, such as UniWorld-V1 in its published format, or the name of a model that
                ships with the package.
            flux: a FLUX.1-dev folder in diffusers layout, for the VAE, CLIP and T5; or a shipped model's name, for its own.
            siglip: a SigLIP2 folder (siglip2-so400m-patch16-512), for references; or a shipped model's name.
            dtype: of the arithmetic, and of weights that are not held otherwise; None chooses bfloat16, or float32 on a CPU
                without instructions for bfloat16.
            storage: how the weights of linear layers are held: "auto" as they are in the files if they are quantized there,
                else in `dtype`; "bfloat16"; "int8" with one scale per row; "fp8"; or "nf4", which needs bitsandbytes. Or a
                `Storage`, which brings its own dtype.

        Raises:
            UniWorldError: the folder is of no known family; a folder was given that the family does not take; the device or
                an installed library cannot hold weights in that storage; a file is
                missing, damaged, or does not fit the configuration: file, tensor and shapes are named.
        """
        held = named_storage(storage, dtype, device) if isinstance(storage, str) else choose_storage(storage, device)
        folders = find_folders(checkpoint, flux, siglip)
        family = family_of(folders.checkpoint)
        for what in ("flux", "siglip"):
            if getattr(folders, what) is not None and what not in family.companions:
                raise UniWorldError(f"{family.name} takes no {what} folder, and one was given: leave it out.")
        model = cls(family, folders, held, device)
        model.check()
        return model

    def check(self) -> None:
        """Hold every file of the folders against its configuration, without reading a weight; once, and then no more.

        Raises:
            UniWorldError: names the file and tensor that is missing, damaged or does not fit.
        """
        self.parts.check()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the parts compute in, V1's routing head apart."""
        return self.storage.compute

    def part(self, name: str, dtype: torch.dtype | Storage | None = None) -> Any:
        """A loaded part by its name in `parts`, in another dtype or storage than the model's if one is given."""
        return self.parts.get(name, dtype or self.storage, self.device)

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
        """What the model knows, if it is one of a small world, as nano is."""
        return read_scope(self.checkpoint)

    @property
    def latent_format(self) -> LatentFormat:
        return self.parts.facts.latent_format

    def reference(self, pictures: Sequence[Picture], use_siglip: bool = True) -> list[Reference]:
        """References of one item, in order, for `encode`, `understand` and `route`.

        Args:
            pictures: PIL pictures or (H, W, 3) tensors, of any mix of sizes.
            use_siglip: False leaves the pictures to the VLM alone.

        Raises:
            UniWorldError: a picture cannot be used, or no SigLIP folder was given.
        """
        if not isinstance(pictures, (list, tuple)):
            raise UniWorldError(
                f"reference takes a list of pictures, and got a {type(pictures).__name__}: write [picture]."
            )
        return make_references(pictures, self.siglip if use_siglip else None)

    def encode(
        self,
        prompt: Prompt | Sequence[Prompt],
        refs: References | Sequence[References] | None = None,
        use_t5: bool = True,
        t5_length: int = T5_LENGTH,
    ) -> Condition:
        """The condition of one prompt or conversation, or of a batch.

        Args:
            prompt: the instruction or a `Conversation` that ends with it, or a list with one per item, of any mix.
            refs: references from `reference`, shared by all prompts, or a list with one list per prompt; None for
                text to image. A conversation has its references in its turns instead.
            use_t5: put T5's tokens of the plain prompt in front, and let CLIP pool it; without, CLIP pools "". Of a
                conversation, both see the last turn's text alone.
            t5_length: T5 tokens, padded.

        Warns:
            UserWarning: words or pictures that a model of a small world does not know, once per call.

        Raises:
            UniWorldError: an empty prompt, a conversation that does not end with the user's turn or is longer than the model
                reads, widths that do not fit, or no FLUX folder.
        """
        conversations = as_conversations(prompt, refs)
        self._warn_of_unknown(conversations)
        return self.family.encode(self._loaded, conversations, t5_length if use_t5 else None)

    def sample(
        self,
        cond: Condition,
        height: int = 1024,
        width: int = 1024,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        seed: int | Sequence[int] = 0,
        noise: torch.Tensor | None = None,
        sigmas: torch.Tensor | None = None,
        callback: Callable[[flow.Step], None] | None = None,
    ) -> torch.Tensor:
        """Paint latents (B, 16, H/8, W/8), the VAE's own.

        Args:
            cond: from `encode`; one item with several seeds, or one seed for all items, or as many of both.
            height: in pixels, a multiple of 16; so is `width`.
            seed: every item is the same picture alone and in a batch.
            noise: (B, 16, H/8, W/8) DiT-side starting noise instead of a seed's.
            sigmas: (steps + 1) a schedule instead of the published one.
            callback: called after every step with a `flow.Step`; what it raises ends the run.

        Raises:
            UniWorldError: sizes, seeds or schedules that do not fit, or values that are not finite (the step is named).
        """
        start = _seeds(seed, len(cond)) if noise is None else noise
        size = Size(height, width)
        return paint(self.part("dit"), cond, size, start, steps, guidance, sigmas=sigmas, callback=callback)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Pictures (B, H, W, 3) in 0..1 of the VAE's own latents (B, 16, H/8, W/8)."""
        return self.vae.decode(z)

    def understand(
        self,
        prompt: Prompt | Sequence[Prompt],
        refs: References | Sequence[References] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> str | list[str]:
        """The VLM's answer: text for one prompt or conversation, a list for a list.

        `prompt` and `refs` as in `encode`, which warns alike, the other options as `VLM.generate`; greedy by default.
        """
        conversations = as_conversations(prompt, refs)
        self._warn_of_unknown(conversations)
        answers = self.family.understand(self._loaded, conversations, max_new_tokens, temperature, seed, callback)
        return answers[0] if isinstance(prompt, (str, Conversation)) else answers

    def route(self, prompt: Prompt | Sequence[Prompt], refs: References | Sequence[References] | None = None) -> Route:
        """Whether each prompt, or the last turn of each conversation, asks for a picture.

        Arguments as `encode`. Raises UniWorldError if the model has no routing head.
        """
        return self.family.route(self._loaded, as_conversations(prompt, refs))

    def _warn_of_unknown(self, conversations: Sequence[Conversation]) -> None:
        """Warn the caller of the public method, of what the model does not know."""
        said = [] if self.scope is None else [self.scope.outside(conversation) for conversation in conversations]
        if any(said):
            warnings.warn(" ".join(dict.fromkeys(filter(None, said))), stacklevel=3)

    @staticmethod
    def checkpoint_layout(
        config: Mapping[str, Any] | str | Path, siglip_width: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        """{tensor name: shape} of a checkpoint with that config.json, from the meta device.

        Args:
            config: the object in `config.json`, or the file's path.
            siglip_width: width of the SigLIP features, which the config does not carry; None takes the published 1152.
        """
        raw = read_json(Path(config)) if isinstance(config, (str, Path)) else config
        return family_by_config(raw).layout(raw, siglip_width)


def find_folders(
    checkpoint: str | Path, flux: str | Path | None = None, siglip: str | Path | None = None
) -> ModelFolders:
    """ModelFolders as `UniWorld.from_pretrained` takes them, names of shipped models replaced.

    Raises:
        UniWorldError: one does not exist.
    """
    shipped = shipped_model(str(checkpoint))
    if shipped is not None:
        checkpoint, flux, siglip = shipped.checkpoint, flux or shipped.flux, siglip or shipped.siglip
    if (lent := shipped_model(str(flux))) is not None:
        flux = lent.flux
    if (lent := shipped_model(str(siglip))) is not None:
        siglip = lent.siglip
    folders = ModelFolders(Path(checkpoint), Path(flux) if flux else None, Path(siglip) if siglip else None)
    for what, folder in vars(folders).items():
        if folder is not None and not folder.is_dir():
            raise UniWorldError(
                f"The {what} folder {folder} does not exist: give the folder that holds the model's files."
            )
    return folders


def _seeds(seed: int | Sequence[int], items: int) -> list[int]:
    seeds: list[Any] = list(seed) if isinstance(seed, (list, tuple, range)) else [seed]
    for one in seeds:
        check_seed(one)
    if not seeds or (items not in (1, len(seeds)) and len(seeds) != 1):
        raise UniWorldError(
            f"There are {len(seeds)} seeds for {items} conditions: give one seed, or one per condition."
        )
    return seeds * items if len(seeds) == 1 else seeds
