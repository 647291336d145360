"""Gives a checkout a virtual environment of its own, once, and runs commands in it.

Imports the standard library only, and is loaded by its path: when it runs, nothing is installed yet. It must be
readable by old Pythons, to say that it is too old.

Where uv is installed, `uv run --extra serve uniworld serve` does as much; this is for who has Python alone. Its lock is
its own for the same reason, and not filelock's.
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
# What the environment is made from: when one of these changes, it is brought up to date.
SOURCES = ("pyproject.toml", "constraints.txt", "requirements.txt")
# These two lie inside the environment. The first shows that we made it, and is held while it is made; the second is
# written when it is whole.
LOCK, STAMP = "uniworld.lock", "uniworld.stamp"
# The tests run on all cores, at most four, as a process of them takes up to 3 GB; each file's in one process, which then
# makes its fixtures once, in the order that tests/conftest.py gives. `test -n0` runs them in one.
TEST_OPTIONS = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"]

# The extras of pyproject.toml that commands need, and options of a command beyond that.
COMMAND_EXTRAS = {"serve": "serve", "train": "train", "data": "train", "eval": "train", "test": "test"}
OPTION_EXTRAS = {
    ("batch", "--ray"): "ray",
    ("batch", "--server"): "serve",
    ("check", "--server"): "serve",
    ("run", "--server"): "serve",
}


class SetupError(Exception):
    """The environment cannot be made; the text says why and what mends it."""


def run_in_environment(root: Path, arguments: list[str]) -> int:
    """Run `uniworld ARGUMENTS`, or the tests, in the environment of the checkout at `root`."""
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        told = f"This is Python {sys.version.split()[0]}; {wanted} or newer is needed. Start it with a newer one."
        return _fail(told, "--json" in arguments)
    testing = arguments[0] == "test"
    as_json = "--json" in arguments
    try:
        environment = ensure_environment(root, _extras_for(arguments))
    except SetupError as error:
        return _fail(str(error), as_json)
    except OSError as error:  # a full disk, or a folder that this user may not write to
        reason = f"{error.strerror or error}: '{error.filename}'" if error.filename else str(error)
        return _fail(
            f"The environment '{root / '.venv'}' cannot be set up ({reason}). Free space, or use a copy of this folder "
            "that you can write to.",
            as_json,
        )
    except KeyboardInterrupt:
        return _fail("The set-up was interrupted. Run the command again to finish it.", as_json)
    if testing:
        os.chdir(root)
        return _replace_process([str(_script(environment, "pytest")), *TEST_OPTIONS, *arguments[1:]])
    return _replace_process([str(_script(environment, "uniworld")), *arguments])


def _extras_for(arguments: list[str]) -> list[str]:
    """The extras of pyproject.toml that a command needs with these options."""
    options = {argument.partition("=")[0] for argument in arguments[1:]}
    wanted = [COMMAND_EXTRAS.get(arguments[0]), *(OPTION_EXTRAS.get((arguments[0], option)) for option in options)]
    return sorted(extra for extra in wanted if extra)


def ensure_environment(root: Path, extras: list[str]) -> Path:
    """The checkout's environment `.venv`, with the package and the extras installed; made or mended if need be.

    Raises:
        SetupError: it cannot be made.
    """
    environment = root / ".venv"
    if _is_ready(root, environment, extras):
        return environment
    # Looked at once: another start makes the folder and then the lock, before anything else lies in it.
    names = {entry.name for entry in environment.iterdir()} if environment.is_dir() else set()
    if names and LOCK not in names:
        raise SetupError(
            f"'{environment}' is an environment that this command did not make. Move it away, or use it yourself: "
            f"'{_python(environment)} -m pip install -e .'"
        )
    environment.mkdir(exist_ok=True)
    with _locked(environment / LOCK):
        # Another start of this command may have done the work while we waited.
        if not _is_ready(root, environment, extras):
            _make(root, environment, extras)
    return environment


def _key(root: Path) -> str:
    """What the environment depends on: the Python it is made with, where it lies, and what it is made from."""
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


def _make(root: Path, environment: Path, extras: list[str]) -> None:
    stamp = _read_stamp(environment)
    (environment / STAMP).unlink(missing_ok=True)
    if stamp.get("python") != list(sys.version_info[:2]):
        # Nothing there, another Python, or a set-up that was interrupted: begin anew.
        _say(f"Making the virtual environment '{environment}' (only this once).")
        _clear(environment)
        pip = _create(environment)
        _say("Installing packages into it; PyTorch is large, so this takes some minutes.")
    else:
        _say(f"Bringing the packages in '{environment}' up to date; this may take some minutes.")
        pip = _pip(environment)
    wanted = sorted({*extras, *stamp.get("extras", ())})
    target = f".[{','.join(wanted)}]" if wanted else "."
    constraints = ["-c", "constraints.txt"] if (root / "constraints.txt").is_file() else []
    install = [*pip, "install", "--disable-pip-version-check", *constraints, "-e", target]
    # In a file or a pipe, the lines of the phases are enough.
    if _on_a_terminal():
        _call([*install, "--progress-bar", "raw" if _has_raw_progress(pip) else "off"], root, PipProgress().read)
    else:
        _call(install, root)
    done = {"key": _key(root), "python": list(sys.version_info[:2]), "extras": wanted}
    part = environment / (STAMP + ".part")
    part.write_text(json.dumps(done), encoding="utf-8")
    part.replace(environment / STAMP)
    _say("The set-up is done.")


def _create(environment: Path) -> list[str]:
    """Make an empty environment; returns the command that starts a pip for it."""
    if importlib.util.find_spec("venv") is None:
        raise SetupError(_no_venv("the module 'venv'"))
    if importlib.util.find_spec("ensurepip") is not None:
        _call([sys.executable, "-m", "venv", str(environment)])
        return _pip(environment)
    # Debian keeps ensurepip in a package of its own. The system's pip can install into an environment without pip.
    _call([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    pip = [sys.executable, "-m", "pip", "--python", str(_python(environment))]
    if importlib.util.find_spec("pip") is None or subprocess.run([*pip, "--version"], capture_output=True).returncode:
        raise SetupError(_no_venv("the module 'ensurepip' and has no pip of version 22.3 or newer"))
    return pip


def _pip(environment: Path) -> list[str]:
    own = [str(_python(environment)), "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True).returncode == 0:
        return own
    return [sys.executable, "-m", "pip", "--python", str(_python(environment))]


def _no_venv(what: str) -> str:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return (
        f"This Python lacks {what}, so no virtual environment can be made. On Debian or Ubuntu: "
        f"'sudo apt install python{version}-venv'; elsewhere install Python from python.org."
    )


def _call(command: list[str], folder: Path | None = None, watch: Callable[[str], bool] | None = None) -> None:
    """Run a set-up command. What it prints is shown only when it fails, and then on standard error.

    Args:
        watch: gets each line as it comes, and returns whether the line is worth showing after a failure.
    """
    settings = {name: value for name, value in os.environ.items() if name not in _FOREIGN_SETTINGS}
    # A pip.conf that says "user" or asks for an active environment would stop pip here.
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
            f"'{shown}' failed (see above). Mend what it says, for instance the network, and run this again."
        )


class PipProgress:
    """Says in plain lines what a running `pip install` does: its large downloads, how far they are, the installation."""

    LARGE = 10  # MB; smaller downloads are over before anybody wonders
    PAUSE = 5.0  # seconds between two lines on one download

    def __init__(self) -> None:
        self._name, self._last = "", 0.0

    def read(self, line: str) -> bool:
        """Take one line of pip's output; False for a line that only counts bytes."""
        words = line.split()
        if len(words) == 4 and words[0] == "Progress" and words[2] == "of":
            self._count(words[1], words[3])
            return False
        if len(words) == 4 and words[0] == "Downloading":  # torch-2.13.0-cp312-...whl (899.8 MB)
            self._begin(words[1], words[2].strip("("), words[3].strip(")"))
        elif line.startswith("Installing collected packages:"):
            _say(f"Installing {len(line.partition(':')[2].split(','))} packages.")
        return True

    def _begin(self, file: str, size: str, unit: str) -> None:
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
    """Whether this pip can count its bytes line by line, as 24.1 and later do."""
    told = subprocess.run([*pip, "--version"], capture_output=True, text=True).stdout.split()
    version = told[1].split(".")[:2] if len(told) > 1 else []
    return all(part.isdigit() for part in version) and tuple(map(int, version)) >= (24, 1)


_FOREIGN_SETTINGS = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__")


def _clear(environment: Path) -> None:
    """Empty the folder but for the lock, which is held and cannot go on Windows."""
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
    """Hold a lock that two starts of this command cannot both have; it ends with the process at the latest."""
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
                _say("Another start of this command is setting up the environment; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace_process(command: list[str]) -> int:
    """Go on as `command`. On Windows, where a process cannot be replaced, wait for it and return its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    # Ctrl-C reaches both of us; the command decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return process.wait()


def _fail(sentence: str, as_json: bool) -> int:
    _say(sentence)
    if as_json:  # which promises a last line on standard output
        print(json.dumps({"event": "error", "message": sentence, "problems": [sentence]}), flush=True)
    return 1


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
