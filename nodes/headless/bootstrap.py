"""Create the virtual environment of a checkout, once, and run commands in it.

This file is loaded by its path and imports only the standard library: when it runs, nothing is installed yet. That is
also why it does not use filelock. Its syntax must work in old Pythons, which get a message about their version.

With uv installed, `uv run --extra serve uniworld serve` does the same; this module is for users who have only Python.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

OLDEST_PYTHON = (3, 10)
# Files that determine the packages. The environment is updated when one of them changes.
SOURCES = ("pyproject.toml", "constraints.txt", "requirements.txt")
# Files inside the environment. The lock marks the environment as ours and is held during setup; the stamp is written once
# setup is complete.
LOCK, STAMP = "uniworld.lock", "uniworld.stamp"
# One test process more than cores, because many tests wait for a browser, a server or a killed process. At most four,
# because each takes up to 3 GB. A file's tests share a process, so that its fixtures are created once; tests/conftest.py
# orders the files. A crashed process ends the run: with another one in its place, pytest-xdist would wait for its files
# for ever. `test -n0` runs everything in a single process.
TEST_PROCESSES = min(4, (os.cpu_count() or 1) + 1)
TEST_OPTIONS = ["-n", str(TEST_PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart", "0"]

# The extras of pyproject.toml that commands need, and options of a command beyond that.
COMMAND_EXTRAS = {
    "bench": "bench",
    "serve": "serve",
    "train": "train",
    "convert": "train",
    "data": "train",
    "eval": "train",
    "lora": "train",
    "reward": "train",
    "test": "test",
}
OPTION_EXTRAS = {
    ("batch", "--ray"): "ray",
    ("batch", "--server"): "serve",
    ("bench", "--ray"): "ray",
    ("bench", "--server"): "serve",
    ("check", "--server"): "serve",
    ("run", "--server"): "serve",
}


class SetupError(Exception):
    """The environment cannot be set up. The message says why and how to fix it."""


def run_in_environment(root: Path, arguments: list[str]) -> int:
    """Run `uniworld ARGUMENTS`, or the tests, in the environment of the checkout at `root`."""
    if sys.version_info < OLDEST_PYTHON:
        required = ".".join(map(str, OLDEST_PYTHON))
        message = (
            f"uniworld needs Python {required} or newer, and this is {sys.version.split()[0]}. Use a newer Python."
        )
        return _fail(message, "--json" in arguments)
    testing = arguments[0] == "test"
    as_json = "--json" in arguments
    try:
        environment = ensure_environment(root, _extras_for(arguments))
    except SetupError as error:
        return _fail(str(error), as_json)
    except OSError as error:  # a full disk, or a folder that this user may not write to
        reason = f"{error.strerror or error}: '{error.filename}'" if error.filename else str(error)
        return _fail(
            f"The environment '{root / '.venv'}' cannot be set up ({reason}). Free disk space, or use a writable copy of "
            "this folder.",
            as_json,
        )
    except KeyboardInterrupt:
        return _fail("Setup was interrupted. Run the command again to finish it.", as_json)
    if testing:
        os.chdir(root)
        return _replace_process([str(_script(environment, "pytest")), *TEST_OPTIONS, *arguments[1:]])
    return _replace_process([str(_script(environment, "uniworld")), *arguments])


def _extras_for(arguments: list[str]) -> list[str]:
    """Return the extras of pyproject.toml that a command needs with these options."""
    options = {argument.partition("=")[0] for argument in arguments[1:]}
    extras = [COMMAND_EXTRAS.get(arguments[0]), *(OPTION_EXTRAS.get((arguments[0], option)) for option in options)]
    return sorted(extra for extra in extras if extra)


def ensure_environment(root: Path, extras: list[str]) -> Path:
    """Return the checkout's environment `.venv`, with the package and the extras installed.

    Creates, completes or updates the environment as needed.

    Raises:
        SetupError: the environment cannot be set up.
    """
    environment = root / ".venv"
    if _is_ready(root, environment, extras):
        return environment
    # The folder is listed once: a concurrent setup creates the lock before any other file, so files without a lock are
    # somebody else's.
    names = {entry.name for entry in environment.iterdir()} if environment.is_dir() else set()
    if names and LOCK not in names:
        raise SetupError(
            f"'{environment}' was not created by this command. Move it away, or install into it yourself: "
            f"'{_python(environment)} -m pip install -e .'"
        )
    environment.mkdir(exist_ok=True)
    with _locked(environment / LOCK):
        # Another process may have finished the setup while this one waited for the lock.
        if not _is_ready(root, environment, extras):
            _set_up(root, environment, extras)
    return environment


def _key(root: Path) -> str:
    """Return a digest of what the environment depends on: Python, platform, location and `SOURCES`."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {sysconfig.get_platform()} {root}".encode())
    for name in SOURCES:
        path = root / name
        digest.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def _read_stamp(environment: Path) -> dict:
    try:
        stamp = json.loads((environment / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and _python(environment).is_file() else {}


def _is_ready(root: Path, environment: Path, extras: list[str]) -> bool:
    stamp = _read_stamp(environment)
    return stamp.get("key") == _key(root) and set(extras) <= set(stamp.get("extras", ()))


def _set_up(root: Path, environment: Path, extras: list[str]) -> None:
    stamp = _read_stamp(environment)
    (environment / STAMP).unlink(missing_ok=True)
    if stamp.get("python") != list(sys.version_info[:2]):
        # The environment is empty, of another Python, or was left by an interrupted setup: start from scratch.
        _say(f"Creating the virtual environment '{environment}' (first use only).")
        _clear(environment)
        pip = _create(environment)
        _say("Installing packages. PyTorch is large, so this takes a few minutes.")
    else:
        _say(f"Updating the packages in '{environment}'. This may take a few minutes.")
        pip = _pip(environment)
    all_extras = sorted({*extras, *stamp.get("extras", ())})
    target = f".[{','.join(all_extras)}]" if all_extras else "."
    constraints = ["-c", "constraints.txt"] if (root / "constraints.txt").is_file() else []
    install = [*pip, "install", "--disable-pip-version-check", *constraints, "-e", target]
    # In a log file, the lines printed above are enough; pip's progress is for terminals.
    if _on_a_terminal():
        _call([*install, "--progress-bar", "raw" if _has_raw_progress(pip) else "off"], root, PipProgress().read)
    else:
        _call(install, root)
    done = {"key": _key(root), "python": list(sys.version_info[:2]), "extras": all_extras}
    part = environment / (STAMP + ".part")
    part.write_text(json.dumps(done), encoding="utf-8")
    part.replace(environment / STAMP)
    _say("Setup is complete.")


def _create(environment: Path) -> list[str]:
    """Create an empty environment and return the command that runs pip for it."""
    if importlib.util.find_spec("venv") is None:
        raise SetupError(_missing_module("the module 'venv'"))
    if importlib.util.find_spec("ensurepip") is not None:
        _call([sys.executable, "-m", "venv", str(environment)])
        return _pip(environment)
    # Debian packages ensurepip separately. The system's pip can install into an environment without pip.
    _call([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    pip = [sys.executable, "-m", "pip", "--python", str(_python(environment))]
    if importlib.util.find_spec("pip") is None or subprocess.run([*pip, "--version"], capture_output=True).returncode:
        raise SetupError(_missing_module("the module 'ensurepip', and pip 22.3 or newer"))
    return pip


def _pip(environment: Path) -> list[str]:
    own = [str(_python(environment)), "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True).returncode == 0:
        return own
    return [sys.executable, "-m", "pip", "--python", str(_python(environment))]


def _missing_module(what: str) -> str:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return (
        f"This Python lacks {what}, so a virtual environment cannot be created. On Debian or Ubuntu, run "
        f"'sudo apt install python{version}-venv'; elsewhere, install Python from python.org."
    )


def _call(command: list[str], folder: Path | None = None, watch: Callable[[str], bool] | None = None) -> None:
    """Run a setup command. Its output is printed, to standard error, only if it fails.

    Args:
        watch: called with each line of output; returns whether to print the line after a failure.
    """
    settings = {name: value for name, value in os.environ.items() if name not in _FOREIGN_SETTINGS}
    # Override a pip.conf with `user` or `require-virtualenv`, which would make pip refuse to install here.
    settings.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    lines = []
    with subprocess.Popen(
        command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    ) as process:
        try:
            for raw in process.stdout or ():
                line = raw.decode(errors="replace").rstrip()
                if watch is None or watch(line):
                    lines.append(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        _say("\n".join(lines))
        shown = " ".join(command)
        raise SetupError(
            f"'{shown}' failed (see above). Fix the cause, such as a missing network connection, and run this again."
        )


class PipProgress:
    """Reports the progress of `pip install` as plain lines: large downloads, and the installation."""

    LARGE = 10  # MB; smaller downloads finish within seconds and are not reported
    PAUSE = 5.0  # seconds between two lines about the same download

    def __init__(self) -> None:
        self._name, self._last = "", 0.0

    def read(self, line: str) -> bool:
        """Process one line of pip's output. Returns False for a line that only reports a byte count."""
        words = line.split()
        if len(words) == 4 and words[0] == "Progress" and words[2] == "of":
            self._count(words[1], words[3])
            return False
        if len(words) == 4 and words[0] == "Downloading":  # torch-2.13.0-cp312-...whl (899.8 MB)
            self._start_download(words[1], words[2].strip("("), words[3].strip(")"))
        elif line.startswith("Installing collected packages:"):
            _say(f"Installing {len(line.partition(':')[2].split(','))} packages.")
        return True

    def _start_download(self, file: str, size: str, unit: str) -> None:
        self._name, self._last = " ".join(file.rpartition("/")[2].split("-")[:2]), time.monotonic()
        if unit == "GB" or (unit == "MB" and float(size) >= self.LARGE):
            _say(f"Downloading {self._name} ({size} {unit}).")

    def _count(self, done: str, total: str) -> None:
        now = time.monotonic()
        if done.isdigit() and total.isdigit() and now - self._last >= self.PAUSE:
            self._last = now
            _say(f"Downloading {self._name}: {int(done) // 10**6} of {int(total) // 10**6} MB.")


def _on_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _has_raw_progress(pip: list[str]) -> bool:
    """Whether this pip supports `--progress-bar raw`: version 24.1 and later do."""
    words = subprocess.run([*pip, "--version"], capture_output=True, text=True).stdout.split()
    version = words[1].split(".")[:2] if len(words) > 1 else []
    return all(part.isdigit() for part in version) and tuple(map(int, version)) >= (24, 1)


_FOREIGN_SETTINGS = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__")


def _clear(environment: Path) -> None:
    """Empty the folder except for the lock: this process holds it, and Windows cannot delete an open file."""
    for entry in environment.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _python(environment: Path) -> Path:
    return _script(environment, "python")


def _script(environment: Path, name: str) -> Path:
    return environment / "Scripts" / f"{name}.exe" if os.name == "nt" else environment / "bin" / name


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it if the process dies."""
    with path.open("a+") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(0.5)
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say("Another process is setting up the environment; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace_process(command: list[str]) -> int:
    """Replace this process by `command`. On Windows, which has no exec, run it and return its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    # Ctrl-C reaches both processes; only the command handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return process.wait()


def _fail(message: str, as_json: bool) -> int:
    _say(message)
    if as_json:  # --json guarantees a last line on standard output
        print(json.dumps({"event": "error", "message": message, "problems": [message]}), flush=True)
    return 1


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
