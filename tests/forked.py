"""Child processes that start with the large libraries already imported.

Importing PyTorch, transformers and diffusers takes several seconds of processor time. multiprocessing's fork server imports
them once for each test process, and every child is a fork of it. What a test says about such a child must not depend on how
Python starts: signals, exit codes, files and memory of its own are those of any process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = [
    "torch",
    "torch.distributed.fsdp",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.siglip.modeling_siglip",
    "transformers.models.clip.modeling_clip",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.transformers.transformer_flux",
]
# Runs in the child: its folder, environment, output files and arguments, and then the program.
_START = """
import os, runpy, sys
os.chdir(cwd)
os.environ.clear()
os.environ.update(env)
for number, file in ((1, out), (2, err)):
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(opened, number)
    os.close(opened)
sys.argv = [program, *arguments]
if "OMP_NUM_THREADS" in env:
    import torch
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
runpy.run_path(checkout)["import_checkout"]()
runpy.run_path(program, run_name="__main__")
"""


def forked_context() -> multiprocessing.context.BaseContext:
    """Return the fork server, or on Windows the context that starts each child from scratch."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


class Forked:
    """A child process with the interface of `subprocess.Popen`; its output is in files.

    Args:
        folder: folder for the program and its output, `NAME.py`, `NAME.out` and `NAME.err`.
        name: name of these files.
        program: text of the program, which can import `uniworld`.
        arguments: command line of the program.
        cwd: its working directory (default: `folder`).
        env: its environment variables (default: those of this process).
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        program: str,
        arguments: Sequence[str] = (),
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        file = folder / f"{name}.py"
        file.write_text(program, encoding="utf-8")
        self.args = [str(file), *arguments]
        self.out, self.err = file.with_suffix(".out"), file.with_suffix(".err")
        for output in (self.out, self.err):
            output.write_bytes(b"")
        given = {
            "cwd": str(cwd or folder),
            "env": dict(os.environ if env is None else env),
            "out": str(self.out),
            "err": str(self.err),
            "program": str(file),
            "arguments": list(arguments),
            "checkout": str(ROOT / "tests" / "benchmarks" / "checkout.py"),
        }
        self._process = forked_context().Process(target=exec, args=(_START, given))
        # Otherwise the child would import the main module of this process, which is pytest.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            self._process.start()
        finally:
            sys.modules["__main__"] = main

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the process, and return its standard output and standard error."""
        self.wait(timeout)
        return self.out.read_text(encoding="utf-8"), self.err.read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            # The fork server removes an ended process a moment before it reports the exit code.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
