"""Memory and time of loading a checkpoint of a gigabyte or more to bfloat16.

The claim: loading increases the process's private memory by at most the size of the bfloat16 model plus
the largest tensor in float32. Pages of mapped shards do not count, since the system can reclaim them.
Where private memory cannot be measured (not on Linux), the resident set is compared with the model plus one shard.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "uniworld_core" / "shipped" / "tiny" / "uniworld"
MIB = 2**20


def wide_config(width: int, blocks: int) -> dict[str, Any]:
    """Return the tiny checkpoint's configuration with another width and number of blocks in the VLM and the DiT."""
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    heads = width // 64
    config |= {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 2 * blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default", "type": "default"},
    }
    config["vision_config"]["out_hidden_size"] = width
    config["denoise_tower"] |= {"input_hidden_size": width, "output_hidden_size": width}
    config["denoise_tower"]["denoiser_config"] |= {
        "attention_head_dim": 64,
        "axes_dims_rope": [16, 24, 24],
        "joint_attention_dim": width,
        "num_attention_heads": heads,
        "num_layers": blocks,
        "num_single_layers": blocks,
    }
    return config


def layout_of(gigabytes: float, width: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the smallest configuration of a width whose float32 checkpoint has at least this size, and its tensors."""
    from uniworld.uniworld_core import UniWorld

    blocks = 1
    while True:
        config = wide_config(width, blocks)
        layout = UniWorld.checkpoint_layout(config)
        if sum(map(bytes_of, layout.values())) >= gigabytes * 2**30:
            return config, layout
        blocks += 1


def bytes_of(shape: tuple[int, ...]) -> int:
    size = 4
    for side in shape:
        size *= side
    return size


def split(layout: dict[str, tuple[int, ...]], limit: int) -> Iterator[list[str]]:
    """Split the tensors into shards of at most `limit` bytes, in order."""
    shard: list[str] = []
    size = 0
    for name, shape in layout.items():
        if shard and size + bytes_of(shape) > limit:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += bytes_of(shape)
    yield shard


def write_checkpoint(folder: Path, gigabytes: float, width: int, shard_bytes: int) -> list[int]:
    """Write a random checkpoint shard by shard, and return the shards' sizes in bytes."""
    import torch
    from safetensors.torch import save_file

    config, layout = layout_of(gigabytes, width)
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors*", "config.json", "*.pt"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shards, weight_map, sizes = list(split(layout, shard_bytes)), {}, []
    for number, names in enumerate(shards, start=1):
        file = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: torch.empty(layout[name]).uniform_(-0.05, 0.05) for name in names}, file)
        weight_map |= dict.fromkeys(names, file.name)
        sizes.append(file.stat().st_size)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sizes


def peak_memory() -> int:
    """Return the peak resident set of this process in bytes, including mapped files."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, ru_maxrss is inherited from the parent process; VmHWM is not
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        raise SystemExit("Peak memory cannot be measured on this system: use Linux or macOS.") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class AnonymousPeak:
    """A context in which a thread records the peak of anonymous memory (not backed by a file); Linux only."""

    STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        self.before = self.peak = self._now() if self.STATUS.is_file() else 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AnonymousPeak:
        if self.before:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self.before:
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        line = next(line for line in self.STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024


def load(folder: Path) -> dict[str, float]:
    """Load all of a checkpoint to bfloat16, after loading the tiny one so that all libraries are imported."""
    import torch
    from uniworld.uniworld_core import UniWorld

    def parts_of(model: UniWorld) -> list[torch.nn.Module]:
        return [model.understanding, model.dit]

    parts_of(UniWorld.from_pretrained("tiny", dtype=torch.bfloat16))
    before, start = peak_memory(), time.perf_counter()
    with AnonymousPeak() as own:
        parts = parts_of(UniWorld.from_pretrained(folder, dtype=torch.bfloat16))
    seconds, peak = time.perf_counter() - start, peak_memory() - before
    parameters = [parameter for part in parts for parameter in part.parameters()]
    return {
        "seconds": seconds,
        "peak": peak,
        "own": own.peak - own.before,
        "model": sum(parameter.nbytes for parameter in parameters),
        "tensor": max(4 * parameter.numel() for parameter in parameters),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.2, help="least size of the float32 checkpoint (1.2)")
    parser.add_argument("--width", type=int, default=1024, help="width of the model, a multiple of 64 (1024)")
    parser.add_argument("--shard-megabytes", type=int, default=256, help="largest size of a shard (256)")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.load:
        print(json.dumps(load(options.load)))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        shards = write_checkpoint(checkpoint, options.gigabytes, options.width, options.shard_megabytes * MIB)
        command = [sys.executable, __file__, "--load", str(checkpoint)]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
    if found["own"]:
        measured, limit, bound = found["own"], found["model"] + found["tensor"], "bfloat16 plus one tensor"
    else:
        measured, limit, bound = found["peak"], found["model"] + max(shards), "bfloat16 plus one shard"
    kept = measured <= limit
    print(f"float32 checkpoint        {sum(shards) / MIB:8.0f} MiB in {len(shards)} shards")
    print(f"largest shard             {max(shards) / MIB:8.0f} MiB")
    print(f"bfloat16 model            {found['model'] / MIB:8.0f} MiB")
    print(f"load time                 {found['seconds']:8.1f} s")
    print(f"peak memory over before   {found['peak'] / MIB:8.0f} MiB, mapped files counted")
    if found["own"]:
        print(f"of that its own           {found['own'] / MIB:8.0f} MiB")
    print(f"{bound:<25} {limit / MIB:8.0f} MiB: {'kept' if kept else 'NOT KEPT'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from checkout import import_checkout

    import_checkout()
    sys.exit(main())
