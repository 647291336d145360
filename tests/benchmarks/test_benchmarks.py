"""The benchmarks run, and loading stays within its memory bound on a small checkpoint. Times are never asserted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(HERE / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_loading_never_has_the_float32_checkpoint_in_memory() -> None:
    printed = run("load.py", "--gigabytes", "0.25", "--width", "512", "--shard-megabytes", "64")
    assert "peak memory over before" in printed
    assert ": kept" in printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_storages_are_compared_with_float32() -> None:
    printed = run("storage.py", "--steps", "2", "--only", "auto,int8")
    assert re.search(r"\nauto .* inf dB\nint8 +12\.\d MiB .* \d\d\.\d dB\n", printed)
    assert re.search(r"\nDiT +bfloat16 +23\.8 GB +int8 +12\.0 GB", printed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_a_model_of_the_real_form_edits_and_its_files_are_deleted(tmp_path: Path) -> None:
    printed = run("fullsize.py", "--tiny", "--side", "32", "--folder", str(tmp_path))
    assert "peak anonymous memory" in printed
    assert "all values finite" in printed
    assert list(tmp_path.iterdir()) == []


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
def test_sampler_is_compared_with_the_bare_transformer() -> None:
    printed = run("sampler.py", "--width", "128", "--side", "64", "--text", "8", "--pairs", "2")
    assert "sampler over bare" in printed


@pytest.mark.slow
def test_server_is_compared_with_the_bare_executor() -> None:
    pytest.importorskip("aiohttp", reason="the server is an extra")
    printed = run("serve.py", "--prompts", "20")
    assert "prompts per second" in printed
    assert "of that the server's own time" in printed
    assert "server over bare executor" in printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is measured on Linux and macOS")
def test_training_is_compared_without_cache_and_in_two_processes() -> None:
    printed = run("train.py", "--steps", "1", "--samples", "4", "--side", "64", "--rounds", "1")
    for name in ("cached, 1 process", "cached, 2 processes", "not cached, 1 process", "not cached, 2 processes"):
        assert f"\n{name} " in printed
    assert "steps per second" in printed
    assert "peak memory" in printed
