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
        compared: number of parity checks.
    """

    device: Any
    tiny: bool
    quick: bool
    caps: tuple[int, ...]
    deadline: float
    lines: list[Line] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    compared: int = 0
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


def run_sections(bench: Bench, wanted: list[str], out: Path | None) -> None:
    """Run sections by name, and write what was measured after each: the machine may end the call at any time."""
    from gpu_sections import SECTIONS

    for name in (name for name in SECTIONS if name in wanted):
        bench.section = name
        if bench.left() < _MARGIN:
            bench.say("section", "SKIPPED: no time left")
        else:
            _run_section(bench, SECTIONS[name])
        if out is not None:
            text = json.dumps([asdict(line) for line in bench.lines], indent=1)
            out.write_text(text + "\n", encoding="utf-8")


def _run_section(bench: Bench, section: Callable[[Bench], None]) -> None:
    start = time.monotonic()
    try:
        section(bench)
    except Exception as error:
        bench.say("section", f"FAILED: {type(error).__name__}: {error}"[:200])
        bench.failed += ["the section"] if bench.section == "parity" else []
        traceback.print_exc()
    bench.free()
    bench.say("seconds", time.monotonic() - start, "s")


def _verdict(bench: Bench) -> str:
    if bench.failed:
        return "parity failed: " + ", ".join(bench.failed)
    return "parity holds" if bench.compared else "parity was not measured"


def _caps(text: str) -> tuple[int, ...]:
    return tuple(int(cap) for cap in text.split(","))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget", type=float, default=540, help="start nothing more after this many seconds (default: 540)"
    )
    parser.add_argument("--out", type=Path, help="write all measurements to this JSON file")
    parser.add_argument("--only", help="comma-separated sections (default: all)")
    parser.add_argument(
        "--caps", type=_caps, default="24,16,12,8", help="memory of the simulated cards, in GiB (default: 24,16,12,8)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--tiny", action="store_true", help="use tiny's widths on a CPU, to test this program")
    options = parser.parse_args(arguments)
    import torch
    from gpu_sections import SECTIONS

    wanted = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"--only names {', '.join(unknown)}; the sections are {', '.join(SECTIONS)}")
    if options.out and not options.out.absolute().parent.is_dir():
        parser.error(f"--out is in a folder that does not exist: {options.out.absolute().parent}")
    if not torch.cuda.is_available() and not options.tiny:
        print("No CUDA device: use --tiny to test this program without one.")
        return 2
    device = torch.device("cpu" if options.tiny else "cuda")
    bench = Bench(device, options.tiny, options.quick, options.caps, time.monotonic() + options.budget)
    run_sections(bench, wanted, options.out)
    print(_verdict(bench))
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from checkout import import_checkout

    import_checkout()
    sys.exit(main())
