"""Benchmark UniWorld-V1 on a GPU: parity, time per step in every setting, memory under caps, loading and training.

Made for one call of ten minutes on a machine without a network: all weights are random, made on the device from the
published configuration. A section that fails or has no time left is skipped with the reason. The exit code is 1 if a
parity line fails, else 0. `--tiny` runs the same on a CPU with tiny's widths.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Seconds that are reserved for the work in progress when the time limit is reached.
_MARGIN = 5.0


@dataclass(frozen=True)
class Line:
    """One measurement."""

    section: str
    name: str
    value: float | str
    unit: str = ""
    expected: str = ""


class Skipped(Exception):
    """Why a measurement is missing."""


@dataclass
class Bench:
    """State that the sections share.

    Attributes:
        device: a torch.device.
        caps: memory of the simulated cards, in GiB.
        lines: measurements so far.
        failed: names of the parity checks that failed.
    """

    device: Any
    tiny: bool
    quick: bool
    caps: tuple[int, ...]
    deadline: float
    lines: list[Line] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    section: str = ""

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Return the seconds until the run must end."""
        return self.deadline - time.monotonic()

    def say(self, name: str, value: float | str, unit: str = "", expected: str = "") -> None:
        """Print and record a measurement."""
        self.lines.append(Line(self.section, name, value, unit, expected))
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{self.section:8} {name:58} {shown:>12} {unit:8} {expected}".rstrip(), flush=True)

    def attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result of `make`. If it fails or no time is left, print the reason and return None."""
        import torch

        try:
            if self.left() < _MARGIN:
                raise Skipped("no time left")
            return make()
        except torch.OutOfMemoryError:
            self.say(name, "OUT OF MEMORY")
        except Skipped as reason:
            self.say(name, f"SKIPPED: {reason}")
        except Exception as error:
            self.say(name, f"SKIPPED: {type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}")
        self.free()
        return None

    def free(self) -> None:
        """Release unused memory."""
        import torch

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def milliseconds(self, run: Callable[[], Any], repeats: int = 10, warm: int = 3) -> float:
        """Return the median time of a call in milliseconds."""
        import torch

        if self.quick or self.tiny:
            repeats, warm = 3, 1
        for _ in range(warm):
            run()
        times = []
        for _ in range(repeats):
            if self.cuda:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                run()
                end.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(end))
            else:
                before = time.perf_counter()
                run()
                times.append((time.perf_counter() - before) * 1000)
        return sorted(times)[len(times) // 2]

    def peak(self) -> tuple[float, float]:
        """Return the peak of allocated and of reserved GiB since the last call."""
        import torch

        if not self.cuda:
            return 0.0, 0.0
        found = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return found


def run_sections(bench: Bench, wanted: list[str] | None) -> None:
    from gpu_sections import SECTIONS

    for name, section in SECTIONS.items():
        if wanted is not None and name not in wanted:
            continue
        bench.section = name
        start = time.monotonic()
        if bench.left() < _MARGIN:
            bench.say("section", "SKIPPED: no time left")
            continue
        try:
            section(bench)
        except Exception as error:
            bench.say("section", f"FAILED: {type(error).__name__}: {error}"[:200])
            traceback.print_exc()
        bench.free()
        bench.say("seconds", time.monotonic() - start, "s")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget", type=float, default=540, help="start nothing more after this many seconds (default: 540)"
    )
    parser.add_argument("--out", type=Path, help="write all measurements to this JSON file")
    parser.add_argument("--only", help="comma-separated sections (default: all)")
    parser.add_argument(
        "--caps", default="24,16,12,8", help="memory of the simulated cards, in GiB (default: 24,16,12,8)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--tiny", action="store_true", help="use tiny's widths on a CPU, to test this program")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available() and not options.tiny:
        print("No CUDA device: use --tiny to test this program without one.")
        return 2
    device = torch.device("cpu" if options.tiny else "cuda")
    caps = tuple(int(cap) for cap in options.caps.split(","))
    bench = Bench(device, options.tiny, options.quick, caps, time.monotonic() + options.budget)
    run_sections(bench, options.only.split(",") if options.only else None)
    if options.out:
        text = json.dumps([asdict(line) for line in bench.lines], indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
    print("parity failed: " + ", ".join(bench.failed) if bench.failed else "parity holds")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from checkout import import_checkout

    import_checkout()
    sys.exit(main())
