"""A LoRA in a safetensors file, or in a folder with PEFT's `adapter_config.json`: its modules, ranks and alphas.

Everything but `LoraFile.tensors` is known from headers and settings. Shapes: r rank, I inputs, O outputs of a layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import UniWorldError
from ..loading.encodings import FLOATS
from ..loading.headers import open_shard, read_header
from ..loading.names import some
from ..loading.settings import read_json
from .config import AdapterConfig, adapter_config, check_alpha, config_in_metadata
from .kinds import is_text_encoder, other_kind

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The file of a folder that diffusers' `save_lora_weights` wrote.
_DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
# Endings of the two matrices: of PEFT (with or without the adapter's name), of kohya's scripts, of early diffusers.
_ENDINGS = (
    re.compile(r"\.lora_(?P<kind>[AB])(?:\.(?!weight$)(?P<adapter>\w+))?\.weight$"),
    re.compile(r"\.lora_(?P<kind>down|up)\.weight$"),
    re.compile(r"\.lora(?:_linear_layer)?\.(?P<kind>down|up)\.weight$"),
)
_ALPHA = ".alpha"
# What `LoraFile.alpha` reports as the source of an alpha that nothing names.
UNKNOWN_ALPHA = "the rank, as neither the file nor a configuration has alpha"
# What it reports for a file in which the scale is already multiplied into B.
SCALE_IN_WEIGHTS = "the rank, as the scale is in the weights"
# Metadata of such a file. Without it nobody could see that its alpha is the rank and not merely unknown.
SCALED_METADATA = {"format": "pt", "uniworld_scale": "in the weights"}
# Metadata with the family of the base model, such as "FLUX.1 Kontext". Names and shapes cannot tell FLUX's descendants apart.
FAMILY_KEY = "uniworld_family"
_DOWN = ("A", "down")
# Prefixes of modules' names. "base_model.model." is PEFT's, "transformer." diffusers', the next two ComfyUI's, and the last
# that of UniWorld-V1's checkpoints.
PREFIXES = (
    "base_model.model.",
    "transformer.",
    "model.diffusion_model.",
    "diffusion_model.",
    "unet.",
    "denoise_tower.denoiser.",
)


@dataclass(frozen=True)
class LoraModule:
    """One adapted module, as stored.

    Attributes:
        name: its name in the file, without the ending.
        down, up: names of the tensors A (r, I) and B (O, r).
        rank, inputs, outputs: r, I and O.
        alpha: value of its `.alpha` tensor, or None.
    """

    name: str
    down: str
    up: str
    rank: int
    inputs: int
    outputs: int
    alpha: float | None = None

    @property
    def bare(self) -> str:
        """The name without prefixes."""
        return without_prefixes(self.name)

    @property
    def of_text_encoder(self) -> bool:
        """Whether it belongs to a text encoder and not to the denoiser."""
        return is_text_encoder(self.bare)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA, of which only names, shapes and alphas have been read.

    Attributes:
        file: the safetensors file.
        modules: {name in the file: module}.
        config: PEFT's settings, if the folder or the file's metadata has them.
        dtypes: dtypes of the matrices, as safetensors names them.
        scaled: whether the metadata says that the scale is in the weights; alpha is then the rank.
        family: family of the base model, if the metadata names it.
    """

    file: Path
    modules: dict[str, LoraModule]
    config: AdapterConfig | None = None
    dtypes: frozenset[str] = field(default_factory=frozenset)
    scaled: bool = False
    family: str | None = None

    def alpha(self, module: LoraModule, given: float | None = None) -> tuple[float, str]:
        """Return alpha of a module and where it is from: the argument, the file, the settings, or else the rank.

        Args:
            given: the argument; None if there is none.
        """
        if given is not None:
            return given, "the argument"
        if module.alpha is not None:
            return module.alpha, f"{_ALPHA} in {self.file.name}"
        if self.config is not None and (alpha := self.config.alpha_of(module.bare)) is not None:
            return alpha, self.config.source
        return float(module.rank), SCALE_IN_WEIGHTS if self.scaled else UNKNOWN_ALPHA

    def check_given(self, alpha: float | None, what: str = "alpha is") -> None:
        """Check an alpha that replaces the file's. None is fine.

        Raises:
            UniWorldError: it is not a finite number other than 0, or the scale is in the weights already.
        """
        if alpha is None:
            return
        check_alpha(alpha, what)
        if self.scaled:
            raise UniWorldError(
                f"{what} {alpha:g}, and {self.file} has the scale in its weights already, which would then be applied twice: "
                "leave alpha out."
            )

    def scale(self, module: LoraModule, given: float | None = None) -> float:
        """Return the factor with which a module was trained: alpha / r, or alpha / sqrt(r) if rank-stabilized."""
        alpha, _ = self.alpha(module, given)
        return alpha / module.rank if self.config is None else self.config.scale(alpha, module.rank)

    def check_denoiser(self) -> None:
        """Raise UniWorldError if there are modules of text encoders, which no model of the package adapts."""
        found = [name for name, module in self.modules.items() if module.of_text_encoder]
        if found:
            raise UniWorldError(
                f"{self.file} also changes text encoders, which is not supported ({len(found)} of {len(self.modules)} modules: "
                f"{some(found)}): write a file without them with `uniworld lora convert --skip-text-encoders`.",
                found,
            )

    def tensors(self) -> Iterator[tuple[LoraModule, torch.Tensor, torch.Tensor]]:
        """Yield each module with A (r, I) and B (O, r) as stored. Copies, so the file may change afterwards.

        Raises:
            UniWorldError: the file has changed since its header was read, or values are not finite.
        """
        with open_shard(self.file) as shard:
            for module in self.modules.values():
                try:
                    down, up = shard.get_tensor(module.down).clone(), shard.get_tensor(module.up).clone()
                except Exception as error:  # SafetensorError: the name is not there any more
                    raise UniWorldError(f"{self.file} has changed since it was opened: open it again.") from error
                for name, tensor, shape in (
                    (module.down, down, (module.rank, module.inputs)),
                    (module.up, up, (module.outputs, module.rank)),
                ):
                    if tensor.shape != shape:
                        raise UniWorldError(f"{self.file} has changed since it was opened: open it again.")
                    if not bool(torch.isfinite(tensor.float()).all()):
                        raise UniWorldError(
                            f"{name} in {self.file} has values that are NaN or infinite: it is damaged, or its training "
                            "diverged."
                        )
                yield module, down, up


def read_lora(source: str | Path) -> LoraFile:
    """Read the header and the settings of a LoRA.

    Args:
        source: a safetensors file, or a folder with one and, in PEFT's layout, `adapter_config.json`.

    Raises:
        UniWorldError: there is no such file, it is damaged, or it is not a plain LoRA; what does not fit is named.
    """
    file = _find(Path(source))
    tensors = read_header(file)
    if (kind := other_kind(tensors)) is not None:
        raise UniWorldError(f"{file} is not a plain LoRA, but a {kind}: only plain LoRAs are supported.")
    pairs, problems = _pairs({name: shape for name, (_, shape) in tensors.items()})
    if not pairs:
        raise UniWorldError(
            f"{file} holds no LoRA: no name of a tensor ends as those of PEFT, diffusers or kohya's scripts "
            f"({some(sorted(tensors)) or 'it has no tensors'})."
        )
    with open_shard(file) as shard:
        metadata = shard.metadata() or {}
        alphas = {
            name.removesuffix(_ALPHA): float(shard.get_tensor(name).reshape(()))
            for name, (_, shape) in tensors.items()
            if _is_alpha(name, shape)
        }
    problems += [f"{name}{_ALPHA} without matrices" for name in alphas if name not in pairs]
    modules: dict[str, LoraModule] = {}
    for name, kinds in pairs.items():
        if problem := _misfit(kinds, tensors):
            problems.append(problem)
            continue
        (rank, inputs), (outputs, _) = tensors[kinds["down"]][1], tensors[kinds["up"]][1]
        alpha = alphas.get(name)
        checked = None if alpha is None else check_alpha(alpha, f"{file} has {name}{_ALPHA}")
        modules[name] = LoraModule(name, kinds["down"], kinds["up"], rank, inputs, outputs, checked)
    if problems:
        raise UniWorldError(f"{file} is not a plain LoRA: {some(problems)}.", problems)
    config = _config(file, metadata)
    _check_ranks(file, modules, config)
    dtypes = frozenset(tensors[module.down][0] for module in modules.values())
    scaled = SCALED_METADATA.items() <= metadata.items()
    return LoraFile(file, modules, config, dtypes, scaled, metadata.get(FAMILY_KEY) or None)


def without_prefixes(name: str) -> str:
    """Return a module's name without `PREFIXES`, of which PEFT and diffusers may have put several before it."""
    while (prefix := next((one for one in PREFIXES if name.startswith(one)), None)) is not None:
        name = name[len(prefix) :]
    return name


def _find(source: Path) -> Path:
    if source.is_file():
        if source.suffix != ".safetensors":
            raise UniWorldError(
                f"{source} is not a safetensors file: other formats can run code when they are read. Convert it first."
            )
        return source
    if not source.is_dir():
        raise UniWorldError(f"{source} does not exist: give a LoRA's safetensors file, or its folder with {CONFIG}.")
    for name in (WEIGHTS, _DIFFUSERS_WEIGHTS):
        if (source / name).is_file():
            return source / name
    found = sorted(source.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise UniWorldError(f"{source} has no {WEIGHTS} and not exactly one safetensors file ({names}): give the file.")
    return found[0]


def _config(file: Path, metadata: dict[str, str]) -> AdapterConfig | None:
    # Beside any other file, the configuration may belong to another LoRA of the folder.
    beside = file.with_name(CONFIG)
    if file.name == WEIGHTS and beside.exists():
        return adapter_config(read_json(beside), str(beside))
    return config_in_metadata(metadata, str(file))


def _pairs(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return {module: {"down" or "up": tensor}}, and problems with other tensors."""
    pairs: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    adapters: set[str] = set()
    for name, shape in shapes.items():
        found = next((match for ending in _ENDINGS if (match := ending.search(name))), None)
        if found is None:
            if not _is_alpha(name, shape):
                problems.append(f"{name} {list(shape)} does not belong to one")
            continue
        kinds = pairs.setdefault(name[: found.start()], {})
        kind, adapter = "down" if found["kind"] in _DOWN else "up", found.groupdict().get("adapter")
        if kind in kinds:
            problems.append(f"{name} and {kinds[kind]} are the same matrix")
        kinds[kind] = name
        adapters |= {adapter} if adapter else set()
    if len(adapters) > 1:
        problems.insert(0, f"several adapters: {', '.join(sorted(adapters))}")
    return pairs, problems


def _is_alpha(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(_ALPHA) and math.prod(shape) == 1


def _misfit(kinds: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> str | None:
    """Describe what is wrong with the matrices of a module; None if they are A (r, I) and B (O, r)."""
    if len(kinds) != 2:
        return f"{next(iter(kinds.values()))} without its other matrix"
    (down_type, down), (up_type, up) = tensors[kinds["down"]], tensors[kinds["up"]]
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
        return f"{kinds['down']} {list(down)} and {kinds['up']} {list(up)} are not matrices of one rank"
    if not {down_type, up_type} <= set(FLOATS):
        return f"{kinds['down']} and {kinds['up']} have dtypes {down_type} and {up_type}, expected one of {', '.join(FLOATS)}"
    return None


def _check_ranks(file: Path, modules: dict[str, LoraModule], config: AdapterConfig | None) -> None:
    if config is None:
        return
    wrong = [
        f"{module.name} has rank {module.rank}, expected {rank}"
        for module in modules.values()
        if (rank := config.rank_of(module.bare)) is not None and rank != module.rank
    ]
    if wrong:
        raise UniWorldError(
            f"{file} does not match {config.source}: {some(wrong)}. Use weights and configuration of the same LoRA.",
            wrong,
        )
