"""Open the detector that GenEval publishes, Mask2Former with Swin from mmdet 2.x, in transformers.

Source: open-mmlab/mmdetection 2.28.2 (mmdet/models/backbones/swin.py, plugins/msdeformattn_pixel_decoder.py,
dense_heads/mask2former_head.py) and its configuration mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco. The networks are the
same as in transformers, except for the names of their tensors and for:

- Query, key and value are one projection in all attention of mmdet. In transformers only the decoder's cross-attention is.
- When Swin merges 2x2 patches, mmdet puts the four positions of one channel side by side, row by row. transformers puts
  all channels of one position side by side, column by column.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .....uniworld_core.errors import UniWorldError, brief
from .....uniworld_core.loading.names import LISTED, some
from .....uniworld_core.loading.pickled import read_tensors
from .identity import PUBLISHED_DETECTOR

_STAGES = 4
# The pixel decoder: three resolutions, and four points in each, for every attention head.
_LEVELS, _POINTS = 3, 4
# Swin's attention, and the projections of transformers.
_SELF, _PARTS = "attention.self", ("query", "key", "value")
# The biases of Swin's attention, and for each pair of positions its place among them: computed, and stored all the same.
_BIAS, _INDEX = "relative_position_bias_table", "relative_position_index"
_ENCODER, _PIXELS = "model.pixel_level_module.encoder", "model.pixel_level_module.decoder"
_QUERIES, _DECODER = "model.transformer_module", "model.transformer_module.decoder"
# Tensors that some versions of transformers have and others do not: the weights of a loss, a norm that Mask2Former does not
# use, and the computed places.
_OPTIONAL = ("criterion.empty_weight", "swin.layernorm.weight", "swin.layernorm.bias", _INDEX)
_EXPECTED = f"Pass the file that GenEval uses, {PUBLISHED_DETECTOR}, or a model folder in transformers' layout."

Change = Literal["none", "split", "merging"]


@dataclass(frozen=True)
class Mask2FormerSizes:
    """Sizes of the network, as far as they are not the same in all of mmdet's Mask2Former with Swin."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    mlp_ratio: float
    features: int
    mask_features: int
    attention_heads: int
    encoder_layers: int
    encoder_hidden: int
    decoder_layers: int
    decoder_hidden: int
    queries: int
    classes: int


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: its name, its names in transformers, its shape, and how it changes."""

    name: str
    to: tuple[str, ...]
    shape: tuple[int, ...]
    change: Change = "none"


def open_mmdet(file: Path) -> Any:
    """Return transformers' Mask2FormerForUniversalSegmentation with the weights of mmdet's file, in float32.

    Raises:
        UniWorldError: the file cannot be read without running code from it, or holds another network. The message lists
            tensors that are missing, unexpected or of another shape.
    """
    import transformers

    library: Any = transformers
    tensors = read_tensors(file, inside="state_dict")
    sizes = _sizes(tensors, file)
    state = converted(tensors, sizes, file)
    logger = logging.getLogger("transformers.modeling_utils")
    quiet, logger.disabled = logger.disabled, True  # it warns of the tensors in _OPTIONAL
    try:
        network, loading = library.Mask2FormerForUniversalSegmentation.from_pretrained(
            None,
            config=_config(sizes),
            state_dict=state,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            torch_dtype=torch.float32,
        )
    except Exception as error:  # transformers raises exceptions of any type on unexpected sizes
        raise UniWorldError(f"No detector can be built from {file}: {brief(error)}.") from error
    finally:
        logger.disabled = quiet
    names = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    wrong = [str(name) for name in names if not str(name).endswith(_OPTIONAL)]
    if wrong:  # not the file's fault: its tensors were checked
        raise RuntimeError(f"transformers has other names for the tensors of Mask2Former: {some(sorted(wrong))}")
    return network


def converted(tensors: Mapping[str, torch.Tensor], sizes: Mask2FormerSizes, file: Path) -> dict[str, torch.Tensor]:
    """Return {name in transformers' published files: tensor}.

    Raises:
        UniWorldError: tensors are missing, unexpected or of another shape.
    """
    table = {one.name: one for one in _table(sizes)}
    names = {name for name in tensors if not name.endswith(f".{_INDEX}")}
    lacking, more = table.keys() - names, names - table.keys()
    problems = [f"lacks {some(sorted(lacking))}"] if lacking else []
    problems += [f"has unexpected {some(sorted(more))}"] if more else []
    for name in sorted(table.keys() & names):
        shape, expected = list(tensors[name].shape), list(table[name].shape)
        if shape != expected:
            problems.append(f"has {name} of shape {shape}, expected {expected}")
        elif not tensors[name].is_floating_point():
            problems.append(f"has {name} of {tensors[name].dtype}, expected floating point")
    if problems:
        raise UniWorldError(f"{file} {'; '.join(problems[:LISTED])}. {_EXPECTED}")
    state = {}
    for name, one in table.items():
        tensor = tensors[name].float()
        if one.change == "merging":
            tensor = _merging_order(tensor)
        parts = tensor.chunk(len(one.to)) if one.change == "split" else [tensor]
        state.update({to: part.contiguous() for to, part in zip(one.to, parts)})
        if name.endswith(f".{_BIAS}"):
            state[one.to[0].removesuffix(_BIAS) + _INDEX] = _window_index(sizes.window)
    return state


def _merging_order(tensor: torch.Tensor) -> torch.Tensor:
    """Reorder the last dimension from (channel, row, column) to (column, row, channel)."""
    return tensor.unflatten(-1, (-1, 2, 2)).movedim(-3, -1).transpose(-3, -2).flatten(-3)


def _window_index(side: int) -> torch.Tensor:
    """Return the place in the table of biases for each pair of a window's positions: (side ** 2, side ** 2).

    The table has rows and columns of offsets, from 1 - side to side - 1.
    """
    rows, columns = (axis.flatten() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    down, right = (axis[:, None] - axis[None] + side - 1 for axis in (rows, columns))
    return down * (2 * side - 1) + right


def _sizes(tensors: Mapping[str, torch.Tensor], file: Path) -> Mask2FormerSizes:
    """Read the sizes off the shapes. Raises UniWorldError if a tensor that shows one is missing."""

    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        found = tuple(tensors[name].shape) if name in tensors else ()
        if len(found) != dimensions or 0 in found:
            missing = f"{file} has no {name} with {dimensions} dimensions"
            raise UniWorldError(f"{missing}: it is not a Mask2Former with Swin of mmdet 2.x. {_EXPECTED}")
        return found

    def count(prefix: str) -> int:
        numbers = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
        return len(numbers)

    head, pixels = "panoptic_head", "panoptic_head.pixel_decoder"
    attention = f"{pixels}.encoder.layers.0.attentions.0"
    width = shape("backbone.patch_embed.projection.weight", 4)[0]
    biases = [shape(f"backbone.stages.{stage}.blocks.0.attn.w_msa.{_BIAS}") for stage in range(_STAGES)]
    return Mask2FormerSizes(
        width=width,
        depths=tuple(count(f"backbone.stages.{stage}.blocks.") for stage in range(_STAGES)),
        heads=tuple(bias[1] for bias in biases),
        window=(math.isqrt(biases[0][0]) + 1) // 2,
        mlp_ratio=shape("backbone.stages.0.blocks.0.ffn.layers.0.0.weight")[0] / width,
        features=shape(f"{pixels}.input_convs.0.conv.weight", 4)[0],
        mask_features=shape(f"{pixels}.mask_feature.weight", 4)[0],
        attention_heads=max(shape(f"{attention}.attention_weights.weight")[0] // (_LEVELS * _POINTS), 1),
        encoder_layers=count(f"{pixels}.encoder.layers."),
        encoder_hidden=shape(f"{pixels}.encoder.layers.0.ffns.0.layers.0.0.weight")[0],
        decoder_layers=count(f"{head}.transformer_decoder.layers."),
        decoder_hidden=shape(f"{head}.transformer_decoder.layers.0.ffns.0.layers.0.0.weight")[0],
        queries=shape(f"{head}.query_feat.weight")[0],
        classes=shape(f"{head}.cls_embed.weight")[0] - 1,
    )


def _config(sizes: Mask2FormerSizes) -> Any:
    import transformers

    library: Any = transformers  # its configurations have more arguments than their types say
    swin = library.SwinConfig(
        embed_dim=sizes.width,
        depths=list(sizes.depths),
        num_heads=list(sizes.heads),
        window_size=sizes.window,
        mlp_ratio=sizes.mlp_ratio,
        drop_path_rate=0.0,
        out_features=[f"stage{number}" for number in range(1, _STAGES + 1)],
    )
    return library.Mask2FormerConfig(
        backbone_config=swin,
        feature_size=sizes.features,
        mask_feature_size=sizes.mask_features,
        hidden_dim=sizes.features,
        num_attention_heads=sizes.attention_heads,
        encoder_layers=sizes.encoder_layers,
        encoder_feedforward_dim=sizes.encoder_hidden,
        decoder_layers=sizes.decoder_layers + 1,  # transformers counts the prediction before the first layer
        dim_feedforward=sizes.decoder_hidden,
        num_queries=sizes.queries,
        num_labels=sizes.classes,
    )


def _table(sizes: Mask2FormerSizes) -> Iterator[_Tensor]:
    yield from _backbone(sizes)
    yield from _pixel_decoder(sizes)
    yield from _query_decoder(sizes)


def _pair(name: str, to: str, shape: tuple[int, ...]) -> Iterator[_Tensor]:
    """Weight and bias of a layer."""
    yield _Tensor(f"{name}.weight", (f"{to}.weight",), shape)
    yield _Tensor(f"{name}.bias", (f"{to}.bias",), shape[:1])


def _backbone(sizes: Mask2FormerSizes) -> Iterator[_Tensor]:
    ours, theirs = f"{_ENCODER}.embeddings", "backbone.patch_embed"
    yield from _pair(f"{theirs}.projection", f"{ours}.patch_embeddings.projection", (sizes.width, 3, 4, 4))
    yield from _pair(f"{theirs}.norm", f"{ours}.norm", (sizes.width,))
    for stage, (depth, heads) in enumerate(zip(sizes.depths, sizes.heads)):
        width = sizes.width * 2**stage
        theirs, ours = f"backbone.stages.{stage}", f"{_ENCODER}.encoder.layers.{stage}"
        for block in range(depth):
            yield from _swin_block(f"{theirs}.blocks.{block}", f"{ours}.blocks.{block}", width, heads, sizes)
        if stage < _STAGES - 1:
            merged, to = f"{theirs}.downsample", f"{ours}.downsample"
            for role in ("weight", "bias"):
                yield _Tensor(f"{merged}.norm.{role}", (f"{to}.norm.{role}",), (4 * width,), "merging")
            reduction = "reduction.weight"
            yield _Tensor(f"{merged}.{reduction}", (f"{to}.{reduction}",), (2 * width, 4 * width), "merging")
        yield from _pair(f"backbone.norm{stage}", f"{_ENCODER}.hidden_states_norms.stage{stage + 1}", (width,))


def _swin_block(theirs: str, ours: str, width: int, heads: int, sizes: Mask2FormerSizes) -> Iterator[_Tensor]:
    attention, hidden = f"{theirs}.attn.w_msa", int(sizes.mlp_ratio * width)
    yield _Tensor(f"{attention}.{_BIAS}", (f"{ours}.{_SELF}.{_BIAS}",), ((2 * sizes.window - 1) ** 2, heads))
    for role, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
        to = tuple(f"{ours}.{_SELF}.{part}.{role}" for part in _PARTS)
        yield _Tensor(f"{attention}.qkv.{role}", to, shape, "split")
    yield from _pair(f"{attention}.proj", f"{ours}.attention.output.dense", (width, width))
    yield from _pair(f"{theirs}.norm1", f"{ours}.layernorm_before", (width,))
    yield from _pair(f"{theirs}.norm2", f"{ours}.layernorm_after", (width,))
    yield from _pair(f"{theirs}.ffn.layers.0.0", f"{ours}.intermediate.dense", (hidden, width))
    yield from _pair(f"{theirs}.ffn.layers.1", f"{ours}.output.dense", (width, hidden))


def _pixel_decoder(sizes: Mask2FormerSizes) -> Iterator[_Tensor]:
    theirs, features = "panoptic_head.pixel_decoder", sizes.features
    for level in range(_LEVELS):  # from the lowest resolution
        width = sizes.width * 2 ** (_STAGES - 1 - level)
        mine, to = f"{theirs}.input_convs.{level}", f"{_PIXELS}.input_projections.{level}"
        yield from _pair(f"{mine}.conv", f"{to}.0", (features, width, 1, 1))
        yield from _pair(f"{mine}.gn", f"{to}.1", (features,))
    yield _Tensor(f"{theirs}.level_encoding.weight", (f"{_PIXELS}.level_embed",), (_LEVELS, features))
    for layer in range(sizes.encoder_layers):
        yield from _pixel_layer(f"{theirs}.encoder.layers.{layer}", f"{_PIXELS}.encoder.layers.{layer}", sizes)
    convolutions = {
        ("lateral_convs.0", "adapter_1"): (features, sizes.width, 1, 1),
        ("output_convs.0", "layer_1"): (features, features, 3, 3),
    }
    for (mine, to), shape in convolutions.items():
        yield _Tensor(f"{theirs}.{mine}.conv.weight", (f"{_PIXELS}.{to}.0.weight",), shape)
        yield from _pair(f"{theirs}.{mine}.gn", f"{_PIXELS}.{to}.1", (features,))
    yield from _pair(f"{theirs}.mask_feature", f"{_PIXELS}.mask_projection", (sizes.mask_features, features, 1, 1))


def _pixel_layer(theirs: str, ours: str, sizes: Mask2FormerSizes) -> Iterator[_Tensor]:
    features, points = sizes.features, sizes.attention_heads * _LEVELS * _POINTS
    outputs = {
        "sampling_offsets": 2 * points,
        "attention_weights": points,
        "value_proj": features,
        "output_proj": features,
    }
    for name, size in outputs.items():
        yield from _pair(f"{theirs}.attentions.0.{name}", f"{ours}.self_attn.{name}", (size, features))
    yield from _feed_forward(theirs, ours, features, sizes.encoder_hidden)
    yield from _pair(f"{theirs}.norms.0", f"{ours}.self_attn_layer_norm", (features,))
    yield from _pair(f"{theirs}.norms.1", f"{ours}.final_layer_norm", (features,))


def _feed_forward(theirs: str, ours: str, features: int, hidden: int) -> Iterator[_Tensor]:
    yield from _pair(f"{theirs}.ffns.0.layers.0.0", f"{ours}.fc1", (hidden, features))
    yield from _pair(f"{theirs}.ffns.0.layers.1", f"{ours}.fc2", (features, hidden))


def _query_decoder(sizes: Mask2FormerSizes) -> Iterator[_Tensor]:
    theirs, features = "panoptic_head", sizes.features
    queries = (sizes.queries, features)
    yield _Tensor(f"{theirs}.query_embed.weight", (f"{_QUERIES}.queries_embedder.weight",), queries)
    yield _Tensor(f"{theirs}.query_feat.weight", (f"{_QUERIES}.queries_features.weight",), queries)
    yield _Tensor(f"{theirs}.level_embed.weight", (f"{_QUERIES}.level_embed.weight",), (_LEVELS, features))
    for layer in range(sizes.decoder_layers):
        yield from _query_layer(f"{theirs}.transformer_decoder.layers.{layer}", f"{_DECODER}.layers.{layer}", sizes)
    yield from _pair(f"{theirs}.transformer_decoder.post_norm", f"{_DECODER}.layernorm", (features,))
    yield from _pair(f"{theirs}.cls_embed", "class_predictor", (sizes.classes + 1, features))
    outputs = (features, features, sizes.mask_features)
    for place, size in enumerate(outputs):
        to = f"{_DECODER}.mask_predictor.mask_embedder.{place}.0"
        yield from _pair(f"{theirs}.mask_embed.{2 * place}", to, (size, features))


def _query_layer(theirs: str, ours: str, sizes: Mask2FormerSizes) -> Iterator[_Tensor]:
    features = sizes.features
    cross, own = f"{theirs}.attentions.0.attn", f"{theirs}.attentions.1.attn"
    for role, shape in (("weight", (3 * features, features)), ("bias", (3 * features,))):
        yield _Tensor(f"{cross}.in_proj_{role}", (f"{ours}.cross_attn.in_proj_{role}",), shape)
        to = tuple(f"{ours}.self_attn.{part}_proj.{role}" for part in ("q", "k", "v"))
        yield _Tensor(f"{own}.in_proj_{role}", to, shape, "split")
    yield from _pair(f"{cross}.out_proj", f"{ours}.cross_attn.out_proj", (features, features))
    yield from _pair(f"{own}.out_proj", f"{ours}.self_attn.out_proj", (features, features))
    yield from _feed_forward(theirs, ours, features, sizes.decoder_hidden)
    for place, norm in enumerate(("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm")):
        yield from _pair(f"{theirs}.norms.{place}", f"{ours}.{norm}", (features,))
