"""Training on cached and on fresh data, in one process and in two: steps per second and peak memory, side by side.

Each variant trains stage 2 on the same generated samples, in fresh processes, one variant after another per round. The
peak is the resident set of the largest process, plus on a GPU the memory that PyTorch allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20
# Untimed steps at the start, which load weights and warm up caches.
WARM = 2


@dataclass
class Variant:
    """One way to train, with its measurements."""

    name: str
    cached: bool
    processes: int
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0

    @property
    def steps_per_second(self) -> float:
        return 1.0 / statistics.median(self.seconds)


def settings(options: argparse.Namespace, folder: Path, cached: bool) -> list[str]:
    """Return the overrides of stage 2 that all variants share."""
    chosen = {
        "model.checkpoint": options.checkpoint,
        "model.flux": options.flux,
        "model.siglip": options.siglip,
        "model.dtype": options.dtype,
        "data.list": folder / "data" / "data.txt",
        "data.cache": folder / "cache" if cached else "",
        "data.area": options.side**2,
        "stage.checkpointing": "false",
        "run.steps": options.steps + WARM,
        "run.batch_size": options.batch,
        "run.micro_batch_size": options.batch // 2,
        "run.validate_every": 0,
        "run.save_every": options.steps + WARM,
        "run.tensorboard": "false",
    }
    return [f"{name}={value}" for name, value in chosen.items()]


def train_here(overrides: list[str], folder: Path) -> None:
    """Run as one process of a training, and write its peak memory in bytes next to it."""
    import resource

    import torch
    from uniworld.training.config.file import load_config
    from uniworld.training.run.fill_cache import fill_cache
    from uniworld.training.run.loop import train

    config = load_config("stage2", overrides)
    if folder.name == "fill":
        fill_cache(config)
        return
    train(config, folder, progress=False)
    # Kilobytes on Linux, bytes on macOS.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    rank = os.environ.get("RANK", "0")
    (folder / f"peak-{rank}.json").write_text(json.dumps({"resident": resident, "allocated": allocated}))


def start(overrides: list[str], folder: Path, processes: int) -> None:
    """Train in fresh processes; several are started like torchrun does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    script = [__file__, "--here", str(folder), *(f"--override={one}" for one in overrides)]
    command = [sys.executable, *(launcher if processes > 1 else []), *script]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def measure(variant: Variant, options: argparse.Namespace, folder: Path, number: int) -> None:
    """Run one round of a variant."""
    run = folder / f"{number}-{variant.processes}-{variant.cached}"
    start(settings(options, folder, variant.cached), run, variant.processes)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    variant.seconds += [json.loads(line)["seconds"] for line in lines[WARM:]]
    peaks = [json.loads(file.read_text()) for file in run.glob("peak-*.json")]
    variant.peak = max([variant.peak, *(peak["allocated"] or peak["resident"] for peak in peaks)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny", help="a checkpoint folder, or a shipped one (tiny)")
    parser.add_argument("--flux", default="", help="its FLUX folder, unless it is a shipped one")
    parser.add_argument("--siglip", default="", help="its SigLIP folder, unless it is a shipped one")
    parser.add_argument("--dtype", default="float32", help="bfloat16 or float32 (float32)")
    parser.add_argument("--side", type=int, default=128, help="side of the pictures in pixels (128)")
    parser.add_argument("--samples", type=int, default=24, help="number of generated samples (24)")
    parser.add_argument("--batch", type=int, default=4, help="global batch size, even (4)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a run (20)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each variant (2)")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--override", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here is not None:
        train_here(options.override, options.here)
        return 0

    variants = [
        Variant(
            f"{'cached' if cached else 'not cached'}, {processes} process{'es' * (processes > 1)}", cached, processes
        )
        for cached in (True, False)
        for processes in (1, 2)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        from uniworld.training.shapes.tasks.dataset import write_dataset

        write_dataset(folder / "data", options.samples, side=options.side, kinds=("recolour", "remove"))
        start(settings(options, folder, cached=True), folder / "fill", processes=1)
        for number in range(options.rounds):
            for variant in variants:
                measure(variant, options, folder, number)
    first = variants[0]
    print(f"{'':<26}{'steps per second':>18}{'ratio':>8}{'peak memory':>16}{'ratio':>8}")
    for one in variants:
        speed, memory = one.steps_per_second / first.steps_per_second, one.peak / first.peak
        print(f"{one.name:<26}{one.steps_per_second:>18.2f}{speed:>8.2f}{one.peak / MIB:>12.0f} MiB{memory:>8.2f}")
    print(
        f"steps of {options.batch} samples at {options.side}x{options.side}; ratios to the first line; memory per process"
    )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from checkout import import_checkout

    import_checkout()
    sys.exit(main())
