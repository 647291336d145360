"""The benchmarks run, and loading stays within its memory bound on a small checkpoint. Times are never asserted."""

from __future__ import annotations

import json
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
def test_every_section_of_the_gpu_benchmark_runs_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    # Without `compile`, whose C++ compiler takes a minute and may be missing.
    sections = "env,parity,step,fp8mm,cache,caps,offload,load,train,summary"
    printed = run("gpu.py", "--tiny", "--quick", "--caps", "8", "--only", sections, "--out", str(out))
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


def test_the_gpu_benchmark_says_what_it_had_no_time_for(tmp_path: Path) -> None:
    printed = run("gpu.py", "--tiny", "--budget", "0")
    assert "step     section" in printed
    assert "SKIPPED: no time left" in printed


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
