"""A checkout sets itself up once, needs only Python, and reports in one sentence why it cannot."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from uniworld.nodes.headless.cli import build_parser
from uniworld.training.cli.main import COMMANDS as TRAINING_COMMANDS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", ROOT / "nodes" / "headless" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0")
    return tmp_path


@pytest.fixture
def calls(bootstrap, checkout, monkeypatch):
    """The setup commands that ran. They are faked: the environment they create has only a link to this Python."""
    made: list[list[str]] = []

    def call(command: list[str], folder: Path | None = None, watch: Any = None) -> None:
        made.append(command)
        if "venv" in command:
            python = bootstrap._python(checkout / ".venv")
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)

    monkeypatch.setattr(bootstrap, "_call", call)
    return made


def verbs(calls: list[list[str]]) -> list[str]:
    return ["venv" if "venv" in command else command[-1] for command in calls]


# Where modules of an extra may be imported; a command with code there needs the extra.
ROOMS = {
    "nodes/headless/serve/": "serve",
    "nodes/headless/remote/": "serve",
    "nodes/headless/batch/ray_pool.py": "ray",
    "nodes/headless/bench/": "bench",
    "training/editr1/reward/ray_workers.py": "ray",  # imported when a run has a cluster
    "training/": "train",
    "uniworld_core/perception/ocr.py": "ocr",  # imported when a node runs; its error says what to install
}


def room_extra(file: str) -> str | None:
    return next((extra for room, extra in ROOMS.items() if file.startswith(room)), None)


def extras_modules() -> dict[str, set[str]]:
    """Return {extra: names of the modules that it installs}, without extras that only combine others."""
    table = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    lists = dict(re.findall(r"^(\w+) = \[(.*?)\]$", table, re.MULTILINE | re.DOTALL))
    return {
        extra: {name.replace("-", "_").lower() for name in re.findall(r'"([\w-]+)[^"]*"', text)}
        for extra, text in lists.items()
        if extra != "test"
    }


def imported(file: Path) -> set[str]:
    """Return the top-level names of the modules that a file imports or looks up with `find_spec`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module))
        elif isinstance(node, ast.Call) and "find_spec" in ast.unparse(node.func):
            names |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    return {name.partition(".")[0] for name in names}


def test_modules_of_an_extra_are_imported_only_where_it_is_installed():
    owners: dict[str, set[str]] = {}
    for extra, modules in extras_modules().items():
        for module in modules:
            owners.setdefault(module, set()).add(extra)
    assert {"aiohttp", "ray", "matplotlib", "webdataset", "comfyui_frontend_package"} <= set(owners)
    files = [file for room in ("nodes", "training", "uniworld_core") for file in (ROOT / room).rglob("*.py")]
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file) & set(owners)
        if room_extra(file.relative_to(ROOT).as_posix()) not in owners[name]
    ]
    assert wrong == []


def commands() -> dict[tuple[str, ...], set[str]]:
    """Return {words of a command: files of the code that it calls, relative to the root}."""
    found = {words: _files([command.run]) for words, command in TRAINING_COMMANDS.items()}
    parsers = next(one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    for name, parser in parsers.choices.items():
        handler = parser.get_default("handler")
        called = [handler.__globals__.get(used) for used in handler.__code__.co_names]
        found[name,] = _files([handler, *called])
    return found


def _files(functions: list[Any]) -> set[str]:
    files = [Path(one.__code__.co_filename).resolve() for one in functions if hasattr(one, "__code__")]
    return {file.relative_to(ROOT).as_posix() for file in files if file.is_relative_to(ROOT)}


@pytest.mark.parametrize(("words", "files"), [pytest.param(*item, id=" ".join(item[0])) for item in commands().items()])
def test_a_command_gets_the_extras_that_its_code_needs(bootstrap, words, files):
    needed = {extra for file in files if (extra := room_extra(file))}
    assert set(bootstrap._extras_for([*words, "--debug"])) == needed
    assert needed <= set(extras_modules())


def test_the_extras_of_every_command_are_checked():
    from uniworld.__main__ import COMMANDS

    assert {words[0] for words in commands()} == set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "extras"),
    [
        ("batch edit --rows rows.jsonl", []),
        ("batch edit --ray local", ["ray"]),
        ("batch edit --rows=rows.jsonl --ray=auto", ["ray"]),
        ("run edit --ray", []),
        ("run edit --server http://127.0.0.1:8188", ["serve"]),
        ("check edit --server=127.0.0.1:8188", ["serve"]),
        ("batch edit --rows rows.jsonl --server a --server b", ["serve"]),
        ("nodes --server a", []),
        ("eval claims", ["train"]),
        ("test -x", ["test"]),
    ],
)
def test_an_option_gets_the_extra_that_it_needs(bootstrap, line, extras):
    assert bootstrap._extras_for(line.split()) == extras


def test_options_cannot_be_abbreviated():
    from uniworld.command_line import UsageError

    with pytest.raises(UsageError, match="--ra"):
        build_parser().parse_args(["batch", "edit", "--rows", "rows.jsonl", "--ra", "local"])


def test_it_is_set_up_once(bootstrap, checkout, calls):
    environment = bootstrap.ensure_environment(checkout, [])
    assert environment == checkout / ".venv"
    assert verbs(calls) == ["venv", "."]
    assert calls[1][-4:-2] == ["-c", "constraints.txt"]
    bootstrap.ensure_environment(checkout, [])
    assert len(calls) == 2


def test_an_extra_is_added_and_kept(bootstrap, checkout, calls):
    bootstrap.ensure_environment(checkout, [])
    bootstrap.ensure_environment(checkout, ["test"])
    bootstrap.ensure_environment(checkout, [])
    (checkout / "constraints.txt").write_text("torch==2.14.0")
    bootstrap.ensure_environment(checkout, [])
    assert verbs(calls) == ["venv", ".", ".[test]", ".[test]"]


def test_another_python_starts_from_scratch(bootstrap, checkout, calls):
    environment = bootstrap.ensure_environment(checkout, [])
    stamp = environment / bootstrap.STAMP
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "key": "old", "python": [3, 1]}))
    bootstrap.ensure_environment(checkout, [])
    assert verbs(calls) == ["venv", ".", "venv", "."]


def test_an_interrupted_set_up_is_redone_from_the_start(bootstrap, checkout, calls, monkeypatch):
    real = bootstrap._call

    def interrupted(command: list[str], folder: Path | None = None) -> None:
        real(command)
        if "venv" not in command:
            (checkout / ".venv" / "half").touch()
            raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "_call", interrupted)
    assert bootstrap.run_in_environment(checkout, ["run"]) == 1
    monkeypatch.setattr(bootstrap, "_call", real)
    bootstrap.ensure_environment(checkout, [])
    assert verbs(calls) == ["venv", ".", "venv", "."]
    assert not (checkout / ".venv" / "half").exists()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_two_starts_at_once_set_up_once(bootstrap, checkout, calls, monkeypatch):
    real, inside = bootstrap._call, []

    def slow(command: list[str], folder: Path | None = None) -> None:
        inside.append(1)
        assert len(inside) == 1
        threading.Event().wait(0.2)
        real(command)
        inside.pop()

    monkeypatch.setattr(bootstrap, "_call", slow)
    starts = [threading.Thread(target=bootstrap.ensure_environment, args=(checkout, [])) for _ in range(3)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert verbs(calls) == ["venv", "."]


def test_an_environment_that_the_user_made_is_not_touched(bootstrap, checkout, calls, capsys):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "pyvenv.cfg").touch()
    assert bootstrap.run_in_environment(checkout, ["run"]) == 1
    assert "was not created by this command" in capsys.readouterr().err
    assert (checkout / ".venv" / "pyvenv.cfg").exists()
    assert not calls


@pytest.fixture
def modules(monkeypatch):
    """Which of the modules that install packages can be found.

    Looking for pip itself would make setuptools leave `distutils` to Python, and then fail wherever this process uses it.
    """
    found = {"ensurepip", "pip"}
    real = importlib.util.find_spec
    spec = real("json")  # any will do

    def find_spec(name):
        if name in ("ensurepip", "pip"):
            return spec if name in found else None
        return real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return found


def test_without_ensurepip_the_systems_pip_is_used(bootstrap, checkout, calls, monkeypatch, modules):
    modules.remove("ensurepip")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    bootstrap.ensure_environment(checkout, [])
    assert "--without-pip" in calls[0]
    assert calls[1][1:4] == ["-m", "pip", "--python"]


def test_without_any_pip_the_error_says_how_to_install_it(bootstrap, checkout, calls, capsys, modules):
    modules -= {"ensurepip", "pip"}
    assert bootstrap.run_in_environment(checkout, ["run"]) == 1
    assert "sudo apt install python3" in capsys.readouterr().err


def test_commands_are_quiet_unless_they_fail(bootstrap, checkout, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    script = "import os, sys; print('said', os.environ.get('PYTHONPATH'), os.environ['PIP_USER'])"
    bootstrap._call([sys.executable, "-c", script])
    assert capfd.readouterr() == ("", "")
    script += "; print('why', file=sys.stderr); raise SystemExit(3)"
    with pytest.raises(bootstrap.SetupError, match=r"failed \(see above\)"):
        bootstrap._call([sys.executable, "-c", script])
    out, err = capfd.readouterr()
    assert out == ""
    assert set(err.split("\n")) == {"said None 0", "why", ""}


def test_each_phase_is_one_line(bootstrap, checkout, calls, capsys):
    for extras, phases in (
        ([], ["Creating", "Installing", "Setup is"]),
        ([], []),
        (["test"], ["Updating", "Setup is"]),
    ):
        bootstrap.ensure_environment(checkout, extras)
        said = capsys.readouterr().err.splitlines()
        assert [line.startswith(phase) for line, phase in zip(said, phases, strict=True)] == [True] * len(phases)


PIP = """\
Obtaining file:///here
Collecting torch==2.13.0
  Downloading torch-2.13.0-cp312-cp312-linux_x86_64.whl (190.4 MB)
Progress 0 of 190400000
Progress 1000000 of 190400000
Progress 95000000 of 190400000
Collecting filelock
  Downloading filelock-3.20.0-py3-none-any.whl (16 kB)
Progress 16000 of 16000
Installing collected packages: filelock, torch
Successfully installed filelock-3.20.0 torch-2.13.0
"""


def test_on_a_terminal_setup_reports_its_progress(bootstrap, monkeypatch, capsys):
    clock = iter([0.0, 0.1, 1.0, 6.5, 7.0, 7.1])
    monkeypatch.setattr(bootstrap.time, "monotonic", lambda: next(clock))
    progress = bootstrap.PipProgress()
    kept = [line for line in PIP.splitlines() if progress.read(line)]
    assert capsys.readouterr().err.splitlines() == [
        "Downloading torch 2.13.0 (190.4 MB).",
        "Downloading torch 2.13.0: 95 of 190 MB.",
        "Installing 2 packages.",
    ]
    assert kept == [line for line in PIP.splitlines() if not line.startswith("Progress")], "shown where pip fails"


@pytest.mark.parametrize(
    ("terminal", "pip", "shown"),
    [(False, "", []), (True, "25.1", ["--progress-bar", "raw"]), (True, "23.2.1", ["--progress-bar", "off"])],
)
def test_progress_is_shown_on_a_terminal_only(bootstrap, checkout, calls, monkeypatch, terminal, pip, shown):
    monkeypatch.setattr(bootstrap, "_on_a_terminal", lambda: terminal)
    version = subprocess.CompletedProcess([], 0, f"pip {pip} from somewhere (python 3.12)")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: version)
    bootstrap.ensure_environment(checkout, [])
    [install] = [command for command in calls if "install" in command]
    assert [word for word in install if word in ("--progress-bar", "raw", "off")] == shown


def test_json_ends_with_an_error_if_setup_fails(bootstrap, checkout, calls, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "_call", interrupted)
    assert bootstrap.run_in_environment(checkout, ["run", "edit", "--json"]) == 1
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "error"
    assert "interrupted" in json.loads(line)["message"]


def test_a_read_only_folder_is_reported_in_one_sentence(bootstrap, checkout, monkeypatch, capsys):
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert bootstrap.run_in_environment(checkout, ["run", "edit", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["event"] == "error"
    assert re.fullmatch(r"The environment '\S+' cannot be set up \(Permission denied: '\S+'\)\. Free disk .*\n", err)


def test_an_old_python_is_rejected(bootstrap, checkout, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "OLDEST_PYTHON", (99, 0))
    assert bootstrap.run_in_environment(checkout, ["run"]) == 1
    assert "needs Python 99.0 or newer" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "script"), [(["run", "edit"], "uniworld"), (["test", "-x"], "pytest")])
def test_the_command_runs_in_the_environment(bootstrap, checkout, calls, monkeypatch, arguments, script):
    started: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "_replace_process", lambda command: started.append(command) or 7)
    monkeypatch.chdir(checkout)
    assert bootstrap.run_in_environment(checkout, arguments) == 7
    options = bootstrap.TEST_OPTIONS if script == "pytest" else []
    expected = [str(bootstrap._script(checkout / ".venv", script)), *options, *arguments[script == "pytest" :]]
    assert started == [expected]


def start(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    # -S and -E: a Python with nothing installed.
    return subprocess.run([sys.executable, "-S", "-E", str(ROOT), *arguments], capture_output=True, text=True, **more)


def test_help_version_and_usage_errors_need_nothing_installed(tmp_path):
    assert start("--version", cwd=tmp_path).stdout.startswith("uniworld 0.")
    assert "test" in start("--help").stdout
    unknown = start("paint")
    assert unknown.returncode == 2
    assert (
        unknown.stderr
        == "Unknown command 'paint'. The commands are: run, nodes, check, batch, bench, chat, serve, train, convert, data, eval, lora, reward, test.\n"
    )
    assert start().returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="processes are replaced on POSIX only")
def test_the_exit_code_is_that_of_the_command(bootstrap):
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("b", {str(ROOT / "nodes" / "headless" / "bootstrap.py")!r})
b = importlib.util.module_from_spec(spec); spec.loader.exec_module(b)
b._replace_process([{sys.executable!r}, "-c", "raise SystemExit(5)"])
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 5
