"""KL-16: the VAE of MAR and of models built on it, with cells of 16 pixels, from `kl16.ckpt`.

Its architecture is that of latent diffusion's first stage, which is diffusers' AutoencoderKL under other names. Every width
is read from the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial

import torch

from ..errors import UniWorldError
from ..loading.meta import build
from ..loading.parts import NetworkPart
from ..loading.quantized import StoredTensor
from ..loading.weights import Shards
from ..sampling.latents import RGB, LatentFormat
from .flux_vae import VAE

# Facts that no tensor has. GroupNorm's groups, and the number of levels: each transition between two halves the sides.
_GROUPS, _LEVELS = 32, 5
_DOWN, _ATTENTION_DOWN, _UP = "DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D"
# Published names, and diffusers'. Levels of the decoder are counted from the other end.
_RENAMED = (
    (r"coder\.down\.(\d+)\.block\.", r"coder.down_blocks.\1.resnets."),
    (r"coder\.down\.(\d+)\.attn\.", r"coder.down_blocks.\1.attentions."),
    (r"coder\.down\.(\d+)\.downsample\.", r"coder.down_blocks.\1.downsamplers.0."),
    (r"coder\.up\.(\d+)\.block\.", r"coder.up_blocks.\1.resnets."),
    (r"coder\.up\.(\d+)\.upsample\.", r"coder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
# diffusers has linear layers where the file has convolutions of 1 by 1.
_LINEAR = re.compile(r"attentions\.\d+\.(to_[qkv]|to_out\.0)\.weight$")
# Side in pixels of the picture from which the colors of previews are fitted: 256 cells, for 17 unknowns a color.
_FIT_SIDE = 256


class KL16(VAE):
    """The autoencoder. Latents are unscaled, (B, C, H/16, W/16)."""

    _rgb: RGB | None = None

    @property
    def rgb(self) -> RGB:
        """A map from normalized latents to the colors of previews, fitted on first use: none is published."""
        if self._rgb is None:
            self._rgb = _fit_rgb(self)
        return self._rgb


class KL16Shards(Shards):
    """The published tensors under diffusers' names.

    Args:
        whole: the file.

    Raises:
        UniWorldError: it has another number of levels.
    """

    def __init__(self, whole: Shards) -> None:
        self.folder, self._whole, self._index, self.encodings = whole.folder, whole, {}, whole.encodings
        levels = {found[1] for name in whole.shapes if (found := re.match(r"encoder\.down\.(\d+)\.", name))}
        if len(levels) != _LEVELS:
            raise UniWorldError(
                f"The VAE in {whole.folder} has {len(levels)} levels; KL-16 has {_LEVELS}: copy kl16.ckpt again."
            )
        self._in_file = {_diffusers_name(name): name for name in whole.shapes}
        self.shapes = {
            name: whole.shapes[old][:2] if _LINEAR.search(name) else whole.shapes[old]
            for name, old in self._in_file.items()
        }
        self.dtypes = {name: whole.dtypes[old] for name, old in self._in_file.items()}
        self.files = {name: whole.files[old] for name, old in self._in_file.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, StoredTensor]]:
        """As `Shards.read`."""
        wanted = {self._in_file[name]: name for name in names}
        for old, tensor in self._whole.read(wanted):
            name = wanted[old]
            yield name, tensor.flatten(1) if isinstance(tensor, torch.Tensor) and _LINEAR.search(name) else tensor

    def nbytes(self, name: str) -> int:
        """As `Shards.nbytes`."""
        return self._whole.nbytes(self._in_file[name])


def kl16_part(whole: Shards, latents: LatentFormat) -> NetworkPart[KL16]:
    """Open the VAE without loading it.

    Args:
        whole: the file, with published names.
        latents: the family's latent format.

    Raises:
        UniWorldError: the file holds another VAE.
    """
    from diffusers import AutoencoderKL

    shards = KL16Shards(whole)
    settings = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": _rows(shards, "post_quant_conv.weight"),
        "block_out_channels": [
            _rows(shards, f"encoder.down_blocks.{level}.resnets.0.conv1.weight") for level in range(_LEVELS)
        ],
        "down_block_types": [_DOWN] * (_LEVELS - 1) + [_ATTENTION_DOWN],
        "up_block_types": [_UP] * _LEVELS,
        "layers_per_block": sum(
            bool(re.match(r"encoder\.down_blocks\.0\.resnets\.\d+\.conv1\.weight", name)) for name in shards.shapes
        ),
        "norm_num_groups": _GROUPS,
        "scaling_factor": latents.scale,
        "shift_factor": latents.shift,
    }
    return NetworkPart(
        lambda: build(lambda: AutoencoderKL.from_config(settings), whole.folder),
        shards,
        partial(KL16, base=latents),
        precise=("*",),  # it has convolutions; its few linear layers are small
    )


def _diffusers_name(name: str) -> str:
    for published, renamed in _RENAMED:
        name = re.sub(published, renamed, name)
    return re.sub(r"up_blocks\.(\d+)", lambda found: f"up_blocks.{_LEVELS - 1 - int(found[1])}", name)


def _rows(shards: Shards, name: str) -> int:
    shape = shards.shapes.get(name)
    if not shape:
        raise UniWorldError(f"{shards.folder} has no {name} of KL-16: copy kl16.ckpt again.")
    return shape[0]


@torch.no_grad()
def _fit_rgb(vae: KL16) -> RGB:
    """Fit cells' mean colors linearly to the latents of a drawn picture: smooth colors, and some plain cells."""
    generator = torch.Generator().manual_seed(0)
    cells = _FIT_SIDE // vae.latent_format.factor
    coarse = torch.rand(1, 3, cells // 4, cells // 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(_FIT_SIDE, _FIT_SIDE), mode="bicubic").clamp(0, 1)
    z_1Chw = vae.latent_format.to_model(vae.encode(smooth.permute(0, 2, 3, 1)).cpu())
    x_NC = z_1Chw[0].flatten(1).T.double()
    colors_N3 = torch.nn.functional.avg_pool2d(smooth, vae.latent_format.factor)[0].flatten(1).T.double() * 2 - 1
    rows = torch.cat([x_NC, torch.ones(len(x_NC), 1, dtype=x_NC.dtype)], dim=1)
    # A small ridge: channels that hardly vary in this picture must not get large factors.
    ridge = 1e-2 * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
    factors = torch.linalg.solve(rows.T @ rows + ridge, rows.T @ colors_N3)
    return (tuple((float(r), float(g), float(b)) for r, g, b in factors.tolist()),)
