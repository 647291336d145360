"""The benchmarks run, and loading stays within its memory bound on a small checkpoint. Times are never asserted.

They run in this process, which has imported the libraries already. What they measure in other processes stays there.
"""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from uniworld.nodes import host
from uniworld.nodes.headless.storage import folders

HERE = Path(__file__).parent

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let benchmarks import each other, and restore what they change in this process."""
    before, handler = folders.current(), signal.getsignal(signal.SIGTERM)
    monkeypatch.syspath_prepend(str(HERE))
    yield
    folders.install(before)
    host.install(None)
    signal.signal(signal.SIGTERM, handler)
    for name in [name for name, module in sys.modules.items() if is_here(module)]:
        del sys.modules[name]


def is_here(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).parent == HERE and module.__name__ != __name__


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the `main` of a benchmark, and return what it prints."""

    def run(script: str, *options: str) -> str:
        assert importlib.import_module(script).main(list(options)) == 0, capsys.readouterr()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_loading_never_has_the_float32_checkpoint_in_memory(run: Run) -> None:
    printed = run("load", "--gigabytes", "0.12", "--width", "512", "--shard-megabytes", "32")
    assert "peak memory over before" in printed
    assert ": kept" in printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_storages_are_compared_with_float32(run: Run) -> None:
    printed = run("storage", "--steps", "1", "--side", "64", "--only", "int8")
    assert re.search(r"\nint8 +12\.\d MiB .* \d\d\.\d dB\n", printed)
    assert re.search(r"\nDiT +bfloat16 +23\.8 GB +int8 +12\.0 GB", printed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_a_model_of_the_real_form_edits_and_its_files_are_deleted(run: Run, tmp_path: Path) -> None:
    printed = run("fullsize", "--tiny", "--side", "32", "--folder", str(tmp_path))
    assert "peak anonymous memory" in printed
    assert "all values finite" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_a_unipic_of_the_real_form_paints_and_its_files_are_deleted(run: Run, tmp_path: Path) -> None:
    printed = run("fullsize", "--family", "unipic", "--tiny", "--side", "64", "--steps", "1", "--folder", str(tmp_path))
    assert "picture of 64x64, 1 steps" in printed
    assert "all values finite" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--side", "100"), ("--steps", "0"), ("--steps", "257"), ("--folder", "missing")])
def test_the_full_size_checks_its_options_before_it_writes(option: tuple[str, str], capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("fullsize").main(["--tiny", "--family", "unipic", *option])
    assert option[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_files_of_the_full_size_are_deleted_after_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "fullsize.py"), "--tiny", "--folder", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("wrote ")
        assert list(tmp_path.iterdir())
        running.terminate()
        assert running.wait(60) == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_section_of_the_gpu_benchmark_runs_without_a_gpu(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    # Without `compile`, whose C++ compiler takes a minute and may be missing.
    sections = "env,parity,step,fp8mm,cache,caps,offload,load,train,summary"
    printed = run("gpu", "--tiny", "--quick", "--caps", "8", "--only", sections, "--out", str(out))
    lines = json.loads(out.read_text(encoding="utf-8"))
    assert not [line for line in lines if str(line["value"]).startswith("FAILED")]
    found = {(line["section"], line["name"]): line["value"] for line in lines}
    assert all((section, "seconds") in found for section in sections.split(","))
    for storage in ("bfloat16", "int8", "fp8"):
        assert 0 < found["parity", f"{storage} against float32"] < 0.05
        assert found["step", f"{storage}, 1024x1024, 1376 text tokens"] > 0
    assert found["caps", "8 GiB: an edit of 1024x1024"] == "possible"
    assert round(found["summary", "one step"]) == 92
    assert printed.splitlines()[-1] == "parity holds"


def test_the_gpu_benchmark_says_what_it_had_no_time_for(run: Run) -> None:
    printed = run("gpu", "--tiny", "--budget", "0")
    assert "step     section" in printed
    assert "SKIPPED: no time left" in printed
    assert printed.splitlines()[-1] == "parity was not measured"


def test_the_gpu_benchmark_fails_if_parity_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, sections = importlib.import_module("gpu"), importlib.import_module("gpu_sections")
    monkeypatch.setitem(sections.SECTIONS, "parity", lambda bench: 1 / 0)
    out = tmp_path / "gpu.json"
    written = []
    monkeypatch.setitem(sections.SECTIONS, "summary", lambda bench: written.append(out.read_text(encoding="utf-8")))
    assert gpu.main(["--tiny", "--only", "parity,summary", "--out", str(out)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "parity failed: the section"
    assert "division by zero" in written[0]  # before the next section, which may not end


@pytest.mark.parametrize("option", [("--only", "steps"), ("--out", "missing/gpu.json"), ("--caps", "8GB")])
def test_the_gpu_benchmark_checks_its_options_before_it_runs(option: tuple[str, str], capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("gpu").main(["--tiny", *option])
    assert option[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_sampler_is_compared_with_the_bare_transformer(run: Run) -> None:
    printed = run("sampler", "--width", "128", "--side", "64", "--text", "8", "--pairs", "2")
    assert "sampler over bare" in printed


@pytest.mark.slow
def test_server_is_compared_with_the_bare_executor(run: Run) -> None:
    pytest.importorskip("aiohttp", reason="the server is an extra")
    printed = run("serve", "--prompts", "20")
    assert "prompts per second" in printed
    assert "of that the server's own time" in printed
    assert "server over bare executor" in printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_training_is_compared_without_cache_and_in_two_processes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    train = importlib.import_module("train")
    start = train.start

    def start_one(overrides: list[str], folder: Path, processes: int) -> None:
        """Start two processes once only, for the run with a cache; the other runs are made here."""
        if processes > 1 and not any(one.endswith("data.cache=") for one in overrides):
            start(overrides, folder, processes)
        else:
            train.train_here(overrides, folder)

    monkeypatch.setattr(train, "start", start_one)
    printed = run("train", "--steps", "1", "--samples", "4", "--side", "64", "--rounds", "1")
    for name in ("cached, 1 process", "cached, 2 processes", "not cached, 1 process", "not cached, 2 processes"):
        assert f"\n{name} " in printed
    assert "steps per second" in printed
    assert "peak memory" in printed
