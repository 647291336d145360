"""UniPic's configuration: facts of the published code, and widths read from the tensors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from ...backbones.mar import MARWidths
from ...backbones.qwen2 import MODEL_TYPE as QWEN2
from ...backbones.qwen2 import Qwen2Config
from ...backbones.token_diffusion import HeadWidths
from ...errors import UniWorldError
from ...loading.settings import HEADS, check_heads, read_json, take
from ...loading.weights import Shards
from ...sampling.latents import LatentFormat

NAME = "UniPic"
# `model_type` in the config.json of a converted folder. The published folder has no configuration of its own.
MODEL_TYPE = "skywork_unipic"
# The file that identifies a published folder.
VAE_FILE = "kl16.ckpt"
CONVERTED_VAE_FILE = "kl16.safetensors"

# Facts that no file has (published: src/models/skywork_unipic_siglip.py, src/models/mar/mar.py and scripts/).
MAR_HEADS = 16
# The published tables of positions are for 512 pixels, and all scripts paint and read at 1024.
NATIVE_STRETCH = 2
ITERATIONS, GUIDANCE, TEMPERATURE = 32, 3.0, 1.0
SCHEDULES = ("constant", "linear")

# Unscaled latents are multiplied by 0.2325 (published: vae_scale). Without the VAE, previews show brightness only; `KL16.rgb`
# has colors fitted to the loaded VAE.
_GRAY = (*[(1 / 32,) * 3] * 16, (0.0,) * 3)
UNIPIC_LATENTS = LatentFormat(
    "unipic", channels=16, factor=16, pack=1, shift=0.0, scale=0.2325, rgb=(_GRAY,), in_comfyui=False
)

# Harmon (arXiv 2503.21979) has the same tensors for 256 pixels and other betas.
_HARMON_SIDE, _PUBLISHED_WIDTH = 16, 1280


@dataclass(frozen=True)
class UniPicConfig:
    """The configuration of a UniPic.

    Attributes:
        mar: widths of MAR.
        head: widths of the diffusion head.
        llm: configuration of the language model.
    """

    mar: MARWidths
    head: HeadWidths
    llm: Qwen2Config

    @property
    def native_side(self) -> int:
        """Side in pixels of the square pictures that the model was trained for."""
        return NATIVE_STRETCH * self.mar.side * UNIPIC_LATENTS.factor

    @classmethod
    def read(cls, folder: Path, shards: Shards, heads: int | None = None) -> UniPicConfig:
        """Read the configuration of a published or converted folder.

        Args:
            shards: the tensors of UniPic in the folder.
            heads: number of MAR's attention heads; None for the number in `config.json`, or else the published one.

        Raises:
            UniWorldError: a file is missing or damaged, or belongs to another model such as Harmon.
        """
        encoder = _shape(shards, "mar.encoder_pos_embed_learned", 3)
        places = _shape(shards, "mar.diffusion_pos_embed_learned", 3)
        projection = _shape(shards, "mar.z_proj.weight", 2)
        side = math.isqrt(places[1])
        if projection[1] != UNIPIC_LATENTS.channels:
            raise UniWorldError(
                f"The tokens in {shards.folder} have {projection[1]} channels; UniPic's have {UNIPIC_LATENTS.channels}: "
                "use the published files."
            )
        if side * side != places[1] or encoder[1] <= places[1]:
            raise UniWorldError(
                f"The tables of positions in {shards.folder} have {encoder[1]} and {places[1]} rows, expected a square number "
                "of rows, and more in the first: use the published files."
            )
        heads = heads or _heads(folder)
        check_heads(projection[0], heads, f"MAR in {shards.folder}")
        _refuse_harmon(folder, shards, side, projection[0])
        return cls(
            MARWidths(
                channels=projection[1],
                width=projection[0],
                hidden=_shape(shards, "mar.encoder_blocks.0.mlp.fc1.weight", 2)[0],
                heads=heads,
                encoder_depth=_depth(shards, "mar.encoder_blocks."),
                decoder_depth=_depth(shards, "mar.decoder_blocks."),
                side=side,
                buffers=encoder[1] - places[1],
            ),
            HeadWidths(
                channels=projection[1],
                states=projection[0],
                width=_shape(shards, "mar.diffloss.net.input_proj.weight", 2)[0],
                depth=_depth(shards, "mar.diffloss.net.res_blocks."),
                frequencies=_shape(shards, "mar.diffloss.net.time_embed.mlp.0.weight", 2)[1],
            ),
            Qwen2Config.read(llm_folder(folder)),
        )


def llm_folder(folder: Path) -> Path:
    """Return the folder of the language model in a UniPic folder.

    Raises:
        UniWorldError: there is none, or there are several.
    """
    files = sorted(folder.glob("*/config.json"))
    found = [file.parent for file in files if read_json(file).get("model_type") == QWEN2]
    if len(found) != 1:
        which = f"contains {' and '.join(one.name for one in found)}: keep one" if found else "contains no folder"
        raise UniWorldError(
            f"{folder} {which} with the configuration and tokenizer of Qwen2: UniPic needs the files of "
            "Qwen2.5-1.5B-Instruct there, as published."
        )
    return found[0]


def _heads(folder: Path) -> int:
    file = folder / "config.json"
    raw = read_json(file) if file.is_file() else {}
    if raw.get("model_type") != MODEL_TYPE:
        return MAR_HEADS
    return int(take(raw, {"mar_heads": HEADS}, str(file)).get("mar_heads", MAR_HEADS))


def _refuse_harmon(folder: Path, shards: Shards, side: int, width: int) -> None:
    converted = (folder / CONVERTED_VAE_FILE).is_file()
    siglip = any(name.startswith("siglip2.") for name in shards.shapes)
    if side == _HARMON_SIDE and (width == _PUBLISHED_WIDTH or not (converted or siglip)):
        raise harmon_error(folder)


def harmon_error(folder: Path) -> UniWorldError:
    """Return the error for a folder that holds Harmon."""
    return UniWorldError(
        f"{folder} holds Harmon, whose tables of positions have {_HARMON_SIDE}x{_HARMON_SIDE} places and whose diffusion has "
        f"other betas than {NAME}'s: use the files of Skywork-UniPic-1.5B."
    )


def _shape(shards: Shards, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shards.shapes.get(name)
    if shape is None:
        raise UniWorldError(
            f"{shards.folder} does not hold UniPic: its weights have no {name}. Use the files of Skywork-UniPic-1.5B."
        )
    if len(shape) != dimensions or 0 in shape:
        raise UniWorldError(f"{name} in {shards.files[name]} has shape {list(shape)}: use the published files.")
    return shape


def _depth(shards: Shards, prefix: str) -> int:
    numbers = {found[1] for name in shards.shapes if (found := re.match(rf"{re.escape(prefix)}(\d+)\.", name))}
    return len(numbers)
