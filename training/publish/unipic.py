"""Convert a UniPic folder to safetensors of another dtype, without SigLIP2, which the model does not use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.families.unipic.checkpoint import UniPicParts
from ...uniworld_core.families.unipic.config import CONVERTED_VAE_FILE, MODEL_TYPE
from ...uniworld_core.loading.encodings import ENCODED
from .conversion import FLOATS, RECORD, STORAGES, Conversion, encoded_entries, sharded, tensor_entry, tensor_sources
from .model_folder import INDEX_FILE, check_apart, copy_settings, write_json
from .tensor_file import TensorEntry, TensorFile
from .work_folder import ConvertedFiles, fingerprint, publish


def convert_unipic(
    folder: Path,
    target: Path,
    conversion: Conversion,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Convert a UniPic, with one tensor in memory at a time. Repeat an interrupted call to resume it.

    Args:
        folder: a folder as published, or converted before.
        target: the folder to create.
        conversion: the settings; the format must be "uniworld".
        progress: called with the number of written tensors and their total.

    Raises:
        UniWorldError: the folder is damaged, the format or storage type is not supported, or the target cannot be written.
    """
    if conversion.to != "uniworld":
        raise UniWorldError(f"{folder} is a UniPic, which ComfyUI and diffusers do not load: use --to uniworld.")
    if conversion.storage not in STORAGES["uniworld"]:
        raise UniWorldError(f"--storage is {conversion.storage}; it must be one of {', '.join(STORAGES['uniworld'])}.")
    check_apart(target, {"UniPic": folder})
    parts = UniPicParts(folder)
    parts.check()
    # With 8-bit storage, layers that are not quantized are bfloat16.
    dtype = FLOATS.get(conversion.storage, torch.bfloat16)
    painter, llm = parts.network("dit"), parts.config.llm.folder
    quantized = painter.quantizable if conversion.storage in ENCODED else frozenset()
    entries: dict[str, TensorEntry] = {}
    sources = tensor_sources(parts.shards)
    for name in painter.in_network:
        if name in quantized:
            entries |= encoded_entries(sources[name], name, conversion.storage)
        else:
            entries[name] = tensor_entry(sources, (name,), dtype)
    files, index = sharded(entries, "model", conversion)
    decoder = tensor_sources(parts.vae_shards)
    vae = {name: tensor_entry(decoder, (name,), dtype) for name in decoder}
    files[CONVERTED_VAE_FILE] = TensorFile(vae)

    def rest(made: Path) -> None:
        (made / llm.name).mkdir(exist_ok=True)  # it exists if the conversion was interrupted here
        copy_settings(llm, made / llm.name)
        settings = {"model_type": MODEL_TYPE, "mar_heads": parts.config.mar.heads}
        write_json(made / "config.json", settings | {"torch_dtype": str(dtype).removeprefix("torch.")})
        write_json(made / INDEX_FILE, index)
        UniPicParts(made).check()

    about = {"to": conversion.to, "storage": conversion.storage}
    source = {"checkpoint": fingerprint(folder), "llm": fingerprint(llm)}
    publish(ConvertedFiles(files, rest, about | {"source": source}, RECORD, [folder, llm]), target, False, progress)
