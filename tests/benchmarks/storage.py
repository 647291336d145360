"""Memory, time and accuracy of each `storage`: measured on nano, and the bytes of UniWorld-V1 computed from its shapes.

Each storage runs in a process of its own. Accuracy is the peak signal-to-noise ratio of two edits against float32.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ("Make the red circle an orange square.", "Make the green triangle yellow.")
MIB, GB = 2**20, 10**9
# Bytes of one weight of a quantized layer: its number, and of NF4 its share of a float32 scale for 64.
WEIGHT_BYTES = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}


def edits(storage: str, side: int, steps: int) -> tuple[Any, dict[str, float]]:
    """Two of nano's edits in a storage, and what they took."""
    import torch
    from load import AnonymousPeak
    from PIL import Image
    from uniworld.uniworld_core import UniWorld

    picture = Image.open(ROOT / "workflows" / "input" / "shapes.png").convert("RGB")

    def run(model: UniWorld) -> Any:
        references = model.reference([picture])
        condition = model.encode(list(PROMPTS), refs=[references, references], use_t5=False)
        return model.decode(model.sample(condition, side, side, steps=steps, seed=[0, 1]))

    run(UniWorld.from_pretrained("tiny", dtype=torch.float32))  # brings in every library
    with AnonymousPeak() as own:
        model = UniWorld.from_pretrained("nano", dtype=torch.float32, storage=storage)
        run(model)
        start = time.perf_counter()
        image = run(model)
        seconds = time.perf_counter() - start
    modules = (model.dit, model.vlm)
    held = sum(tensor.nbytes for part in modules for tensor in [*part.parameters(), *part.buffers()])
    return image, {"seconds": seconds, "peak": own.peak - own.before, "weights": held}


def measure(storage: str, side: int, steps: int) -> dict[str, float]:
    """The figures of one storage, its accuracy included."""
    image, figures = edits(storage, side, steps)
    exact, _ = edits("auto", side, steps)
    error = float((image - exact).pow(2).mean())
    return figures | {"decibels": float("inf") if error == 0 else -10 * math.log10(error)}


def full_size() -> dict[str, dict[str, float]]:
    """{part: {storage: bytes}} of UniWorld-V1's two large parts, with bfloat16 arithmetic."""
    import torch
    from uniworld.uniworld_core.backbones import flux_transformer, qwen_vl
    from uniworld.uniworld_core.backbones.qwen_files import build_qwen
    from uniworld.uniworld_core.families.uniworld_v1.config import UniWorldConfig

    raw = json.loads((ROOT / "tests" / "data" / "fullsize.json").read_text(encoding="utf-8"))["config"]
    config = UniWorldConfig.from_dict(raw)
    parts = {
        "DiT": (flux_transformer.build_transformer(config.denoiser, "config"), flux_transformer.PRECISE),
        "Qwen2.5-VL": (build_qwen(config.vlm), qwen_vl.PRECISE),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (network, precise) in parts.items():
        free = sum(
            layer.weight.numel()
            for path, layer in network.named_modules()
            if type(layer) is torch.nn.Linear and not any(fnmatchcase(path, pattern) for pattern in precise)
        )
        rest = 2 * (sum(parameter.numel() for parameter in network.parameters()) - free)
        found[name] = {"bfloat16": rest + 2 * free} | {key: rest + free * each for key, each in WEIGHT_BYTES.items()}
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128, help="side of the pictures in pixels (128)")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps (12)")
    parser.add_argument("--only", help="comma-separated storages (all)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure, options.side, options.steps)))
        return 0
    from uniworld.uniworld_core.loading.options import STORAGES

    print("nano, float32 arithmetic  DiT and VLM  own peak  two edits  against float32")
    for storage in options.only.split(",") if options.only else STORAGES:
        command = [
            sys.executable,
            __file__,
            "--measure",
            storage,
            "--side",
            str(options.side),
            "--steps",
            str(options.steps),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{storage:<24}  skipped: {done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{storage:<24}  {found['weights'] / MIB:7.1f} MiB  {found['peak'] / MIB:4.0f} MiB  {found['seconds']:7.2f} s  "
            f"{found['decibels']:12.1f} dB",
            flush=True,
        )
    print("\nUniWorld-V1, bfloat16 arithmetic (computed)")
    for part, sizes in full_size().items():
        print(f"{part:<12}" + "".join(f"{storage:>12} {size / GB:5.1f} GB" for storage, size in sizes.items()))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from checkout import import_checkout

    import_checkout()
    sys.exit(main())
