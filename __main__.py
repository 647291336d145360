"""The command `uniworld`. In a checkout, `python3 . run edit` creates a virtual environment first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent

COMMANDS = {
    "run": "run a workflow",
    "nodes": "list the nodes, or show one",
    "check": "check a workflow without running it",
    "batch": "run a workflow over many rows",
    "bench": "measure a workflow on a published benchmark",
    "chat": "chat with the model in a terminal",
    "serve": "serve the editor and ComfyUI's HTTP API",
    "train": "train a model; plot, export and merge checkpoints",
    "convert": "convert a checkpoint, for ComfyUI, diffusers or to another dtype",
    "data": "check, convert, cache or generate training data",
    "eval": "evaluate a model",
    "lora": "inspect a LoRA, or convert it for diffusers and ComfyUI",
    "reward": "serve a reward for training",
}
TRAINING = ("train", "convert", "data", "eval", "lora", "reward")
# Only in a checkout: the installed package has no tests.
CHECKOUT_COMMANDS = {"test": "run the tests of this checkout"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line of the installed package and return the exit code."""
    from .command_line import exit_code_of, print_last_line
    from .streams import protect_standard_streams

    protect_standard_streams()
    arguments = sys.argv[1:] if argv is None else argv
    answer = _answer_directly(arguments, COMMANDS)
    if answer is not None:
        return answer
    last_line = print_last_line if "--json" in arguments else None
    return exit_code_of(lambda: _entry_point(arguments)(arguments), "--debug" in arguments, last_line)


def _entry_point(arguments: list[str]) -> Callable[[list[str]], int]:
    """Return the entry point of a command. Imported here, so that `uniworld train` does not import the server."""
    from .command_line import describe_error
    from .uniworld_core.errors import RunFailed

    try:
        if arguments[0] in TRAINING:
            from .training.cli.main import main as run_command
        else:
            from .nodes.headless.cli import main as run_command
    except Exception as error:  # whatever importing a broken installation raises
        raise RunFailed(f"uniworld cannot start: {describe_error(error)}") from error
    return run_command


def _main_in_checkout(arguments: list[str]) -> int:
    """Run a command in the checkout's virtual environment; create the environment first if needed."""
    _load_file("uniworld_streams", ROOT / "streams.py").protect_standard_streams()
    answer = _answer_directly(arguments, {**COMMANDS, **CHECKOUT_COMMANDS})
    if answer is not None:
        return answer
    bootstrap = _load_file("uniworld_bootstrap", ROOT / "nodes" / "headless" / "bootstrap.py")
    return int(bootstrap.run_in_environment(ROOT, arguments))


def _load_file(name: str, path: Path) -> Any:
    """Import a module by its path: `python3 .` runs this file as a script, outside any package."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _answer_directly(arguments: list[str], commands: dict[str, str]) -> int | None:
    """Answer --help, --version and unknown commands, which need no dependencies.

    Returns:
        The exit code; None if there is a command to run.
    """
    usage = "usage: uniworld COMMAND ...\n\n" + "\n".join(f"  {name:<8}{text}" for name, text in commands.items())
    usage += "\n\nRun `uniworld COMMAND --help` for its options."
    if not arguments:
        print(usage, file=sys.stderr)
        return 2
    if arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    if arguments[0] == "--version":
        print(f"uniworld {_version()}")
        return 0
    if arguments[0] not in commands:
        print(f"Unknown command '{arguments[0]}'. The commands are: {', '.join(commands)}.", file=sys.stderr)
        return 2
    return None


def _version() -> str:
    project = ROOT / "pyproject.toml"
    if project.is_file():  # a checkout; parsed by hand, as Python 3.10 has no tomllib
        for line in project.read_text(encoding="utf-8").splitlines():
            if line.startswith("version = "):
                return line.partition("=")[2].strip().strip('"')
    from importlib.metadata import version

    return version("uniworld")


if __name__ == "__main__":
    sys.exit(main() if __package__ else _main_in_checkout(sys.argv[1:]))
