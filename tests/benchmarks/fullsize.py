"""One edit with a model of UniWorld-V1's real size, or one picture of UniPic, on a machine with little memory and no GPU.

Writes a random checkpoint shard by shard (an int8 DiT of 11.9 billion parameters, Qwen2.5-VL in bfloat16, and a VAE, CLIP
and SigLIP2 of their real sizes: about 30 GB), edits a picture through `UniWorld.from_pretrained` in a process of its own,
and prints the peaks of its memory. The numbers are drawn once and repeated, since only sizes matter here; the picture
is noise. The files are deleted at the end, also after SIGTERM or an error. With `--family unipic` the checkpoint is a UniPic
in bfloat16 (5 GB), which paints a picture from text; `--steps` is then the number of iterations.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).parent))
from fullsize_unipic import paint, write_unipic

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "uniworld_core" / "shipped" / "tiny"
GB = 10**9
NEEDED = {"uniworld": 40 * GB, "unipic": 8 * GB}
SHARD_BYTES = 5 * GB
# Standard deviation of the weights. It keeps activations finite through all layers.
STD = 0.02
_POOL = 2**22  # random numbers
_TOKEN_IDS = ("image", "video", "vision_start", "vision_end", "vision", "image_begin", "image_end")

# FLUX.1-dev's vae/config.json and text_encoder/config.json, and siglip2-so400m-patch16-512, where they differ from tiny's.
VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024}
CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "image_size": 512,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its dtype, as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * {"F32": 4, "BF16": 2, "I8": 1}[self.dtype]


class Pool:
    """Random numbers that all tensors share."""

    def __init__(self) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(_POOL, generator=generator) * STD
        self.normal = normal.to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
        self.int8 = (normal / STD * 32).round().clamp(-127, 127).to(torch.int8).numpy().tobytes()
        self._torch = torch

    def write(self, file: BinaryIO, name: str, tensor: Tensor) -> None:
        """Write a tensor's bytes: weights from the pool, norms 1, biases 0, and the scales of int8 weights."""
        if tensor.dtype == "F32":
            value = STD / 32
        elif tensor.dtype == "I8" or (len(tensor.shape) > 1 and not name.endswith("bias")):
            source = self.int8 if tensor.dtype == "I8" else self.normal
            whole, rest = divmod(tensor.nbytes, len(source))
            for _ in range(whole):
                file.write(source)
            file.write(source[:rest])
            return
        else:
            value = 0.0 if name.endswith("bias") else 1.0
        dtype = self._torch.float32 if tensor.dtype == "F32" else self._torch.bfloat16
        filled = self._torch.full(tensor.shape, value, dtype=dtype)
        file.write(filled.reshape(-1).view(self._torch.uint8).numpy().tobytes())


def write_file(file: Path, tensors: Mapping[str, Tensor], pool: Pool) -> None:
    """Write one safetensors file, a tensor at a time."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with file.open("wb") as opened:
        opened.write(len(data).to_bytes(8, "little") + data)
        for name, tensor in tensors.items():
            pool.write(opened, name, tensor)


def shards(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Split tensors into shards. Tensors of 4-byte elements come first, so that all are aligned."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield _aligned(shard)
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield _aligned(shard)


def _aligned(shard: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(shard.items(), key=lambda item: ("F32", "BF16", "I8").index(item[1].dtype)))


def checkpoint_tensors(config: Mapping[str, Any], siglip_width: int, precise: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with an int8 DiT."""
    from fnmatch import fnmatchcase

    from uniworld.uniworld_core import UniWorld
    from uniworld.uniworld_core.loading.encodings import scale_name

    prefix = "denoise_tower.denoiser."
    tensors: dict[str, Tensor] = {}
    for name, shape in UniWorld.checkpoint_layout(config, siglip_width).items():
        layer = name.removeprefix(prefix).rpartition(".")[0]
        quantized = name.startswith(prefix) and name.endswith(".weight") and len(shape) == 2
        if quantized and not any(fnmatchcase(layer, pattern) for pattern in precise):
            tensors |= {name: Tensor("I8", shape), scale_name(name): Tensor("F32", (shape[0], 1))}
        else:
            tensors[name] = Tensor("BF16", shape)
    return tensors


def full_config() -> dict[str, Any]:
    """Return UniWorld-V1's config.json with the token ids of tiny's tokenizer."""
    tiny = json.loads((TINY / "uniworld" / "config.json").read_text(encoding="utf-8"))
    config = json.loads((ROOT / "tests" / "data" / "fullsize.json").read_text(encoding="utf-8"))["config"]
    ids = [f"{name}_token_id" for name in _TOKEN_IDS] + ["bos_token_id", "eos_token_id"]
    return config | {name: tiny[name] for name in ids}


def write_model(folder: Path, tiny: bool) -> int:
    """Write the three folders of a model, and return the bytes of their weights."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, SiglipVisionConfig, SiglipVisionModel
    from uniworld.uniworld_core.backbones.flux_transformer import PRECISE

    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors*", "transformer", "text_encoder_2"))
    pool, written = Pool(), 0

    def write(target: Path, stem: str, tensors: Mapping[str, Tensor]) -> None:
        nonlocal written
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards(tensors), start=1):
            file = f"{stem}-{number:05}.safetensors"
            write_file(target / file, shard, pool)
            weight_map |= dict.fromkeys(shard, file)
            print(f"wrote {target.name}/{file}", flush=True)
        index = {"metadata": {}, "weight_map": weight_map}
        (target / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        written += sum(tensor.nbytes for tensor in tensors.values())

    def changed(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
        settings = json.loads(file.read_text(encoding="utf-8")) | ({} if tiny else values)
        file.write_text(json.dumps(settings), encoding="utf-8")
        return settings

    checkpoint = folder / "uniworld"
    config = changed(checkpoint / "config.json", full_config())
    if not tiny:  # the published checkpoint's limits differ from tiny's
        changed(checkpoint / "preprocessor_config.json", {"min_pixels": 3136, "max_pixels": 12845056, "size": None})
        (checkpoint / "task_head_final.pt").unlink()  # it has tiny's width
    vision = changed(folder / "siglip" / "config.json", SIGLIP)
    write(checkpoint, "model", checkpoint_tensors(config, vision["hidden_size"], PRECISE))
    changed(folder / "siglip" / "preprocessor_config.json", {"size": {"height": 512, "width": 512}})
    text = changed(folder / "flux" / "text_encoder" / "config.json", CLIP)
    vae = changed(folder / "flux" / "vae" / "config.json", VAE)
    with torch.device("meta"):
        networks = {
            folder / "siglip": SiglipVisionModel(SiglipVisionConfig(**vision)),
            folder / "flux" / "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
            folder / "flux" / "vae": AutoencoderKL.from_config(vae),
        }
    for target, network in networks.items():
        shapes = {
            name: tuple(value.shape) for name, value in network.state_dict().items() if "position_ids" not in name
        }
        stem = "diffusion_pytorch_model" if target.name == "vae" else "model"
        write(target, stem, {name: Tensor("BF16", shape) for name, shape in shapes.items()})
    return written


def edit(folder: Path, side: int, steps: int) -> dict[str, float]:
    """Edit a picture, and return the time and memory it took. Raise an error if a value is not finite."""
    import torch
    from load import AnonymousPeak, peak_memory
    from PIL import Image
    from uniworld.uniworld_core import UniWorld

    start = time.perf_counter()
    with AnonymousPeak() as own:
        model = UniWorld.from_pretrained(folder / "uniworld", folder / "flux", folder / "siglip")
        references = model.reference([Image.new("RGB", (side, side), (200, 40, 10))])
        condition = model.encode("Make it winter.", refs=references, use_t5=False)
        encoded = time.perf_counter()
        latent = model.sample(condition, side, side, steps=steps)
        sampled = time.perf_counter()
        image = model.decode(latent)
    assert torch.isfinite(condition.tokens).all()
    assert torch.isfinite(image).all()
    return {
        "rss": peak_memory(),
        "anonymous": own.peak,
        "encode": encoded - start,
        "sample": sampled - encoded,
        "seconds": time.perf_counter() - start,
        "tokens": condition.tokens.shape[1],
        "dtype": str(model.dtype).removeprefix("torch."),
        "cpu": time.process_time(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write the files (default: the system's temporary folder)")
    parser.add_argument("--side", type=int, default=256, help="side of the picture in pixels (default: 256)")
    parser.add_argument("--steps", type=int, default=2, help="sampling steps (default: 2)")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    parser.add_argument("--tiny", action="store_true", help="use the tiny model, to test this program")
    parser.add_argument("--family", choices=tuple(NEEDED), default="uniworld", help="the model (default: uniworld)")
    parser.add_argument("--edit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unipic = options.family == "unipic"
    if options.edit:
        run = paint if unipic else edit
        print(json.dumps(run(options.edit, options.side, options.steps)))
        return 0
    # Checked before 30 GB are written.
    if options.side < 16 or options.side % 16:
        parser.error(f"--side is {options.side}; it must be a positive multiple of 16")
    if not 1 <= options.steps <= ((options.side // 16) ** 2 if unipic else 10_000):
        parser.error(f"--steps is {options.steps}; it must be at least 1, and for UniPic at most one per 16x16 pixels")
    if options.folder and not options.folder.is_dir():
        parser.error(f"--folder is {options.folder}, which does not exist")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parent = options.folder or Path(tempfile.gettempdir())
    free = shutil.disk_usage(parent).free
    needed = NEEDED[options.family]
    if free < needed and not options.tiny:
        print(f"{parent} has {free / GB:.1f} GB free, and {needed / GB:.0f} are needed: name another with --folder.")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="uniworld-fullsize-", dir=parent))
    child: subprocess.Popen[str] | None = None
    try:
        start = time.perf_counter()
        size = (write_unipic if unipic else write_model)(folder / "model", options.tiny)
        print(
            f"weights                   {size / GB:8.2f} GB, written in {time.perf_counter() - start:.0f} s", flush=True
        )
        command = [sys.executable, __file__, "--edit", str(folder / "model")]
        command += ["--side", str(options.side), "--steps", str(options.steps), "--family", options.family]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        printed, _ = child.communicate()
        if child.returncode:
            print(f"the run exited with {child.returncode}")
            return 1
        found = json.loads(printed.splitlines()[-1])
    finally:
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()
        if options.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder)
    print(
        f"{'picture' if unipic else 'edit'} of {options.side}x{options.side}, {options.steps} steps  {found['seconds']:8.0f} s ({found['cpu']:.0f} s of CPU)"
    )
    print(f"  reading and encoding    {found['encode']:8.0f} s, {found['tokens']} text tokens, {found['dtype']}")
    print(f"  sampling                {found['sample']:8.0f} s")
    print(f"peak resident memory      {found['rss'] / GB:8.2f} GB, mapped files counted")
    print(f"peak anonymous memory     {found['anonymous'] / GB:8.2f} GB")
    print("all values finite")
    return 0


if __name__ == "__main__":
    from checkout import import_checkout

    import_checkout()
    sys.exit(main())
