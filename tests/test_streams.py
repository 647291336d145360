"""No output channel can abort a command: full disks, closed descriptors, readers that stop. Nor can input that is not text."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from uniworld.streams import ResilientStream, progress_bar, protect_standard_streams, say, write_error

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX descriptors")

ROOT = Path(__file__).resolve().parents[1]
PICTURE = '{"1": {"class_type": "LoadImage", "inputs": {"image": "shapes.png"}}, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}}}'


def stream_to(descriptor: int, patience: float | None = 0.1) -> io.TextIOWrapper:
    raw = ResilientStream(io.FileIO(descriptor, "w", closefd=False), patience)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):  # closed by the test
            os.close(end)


def test_what_is_written_arrives(pipe):
    stream = stream_to(pipe[1])
    print("é" * 1500, file=stream)
    assert os.read(pipe[0], 10_000).decode() == "é" * 1500 + "\n"
    assert write_error(stream) is None
    assert stream.fileno() == pipe[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_only_loses_text():
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        stream = stream_to(full.fileno())
        print("lost", file=stream)
        stream.flush()
        assert write_error(stream).errno == errno.ENOSPC


def test_a_descriptor_closed_later_only_loses_text(pipe):
    stream = stream_to(pipe[1])
    os.close(pipe[1])
    print("lost", file=stream)
    assert write_error(stream).errno == errno.EBADF


def test_a_reader_that_exits_is_not_an_error(pipe):
    stream = stream_to(pipe[1])
    os.close(pipe[0])
    print("unread", file=stream)
    assert write_error(stream) is None


def test_a_reader_that_stops_is_waited_for_once_and_may_resume(pipe):
    stream = stream_to(pipe[1])
    start = time.monotonic()
    for _ in range(400):
        print("x" * 1000, file=stream)  # far more than a pipe can buffer
    assert time.monotonic() - start < 5
    assert write_error(stream).errno == errno.EAGAIN
    os.read(pipe[0], 1 << 20)
    print("resumed", file=stream)
    assert os.read(pipe[0], 1 << 20).endswith(b"resumed\n")


def test_a_stream_without_a_file_accepts_everything():
    stream = io.TextIOWrapper(io.BufferedWriter(ResilientStream(None)), line_buffering=True)
    assert not stream.isatty()
    print("lost", file=stream)
    assert write_error(stream).errno == errno.EBADF


class Broken(io.StringIO):
    """A replacement for standard error whose every write fails."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "the terminal has gone")


@pytest.mark.parametrize("stream", [None, Broken(), io.StringIO()])
def test_say_never_fails(monkeypatch, stream):
    if isinstance(stream, io.StringIO) and not isinstance(stream, Broken):
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    say("a sentence")


def test_bytes_that_are_not_text_do_not_end_the_input(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nnext\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    protect_standard_streams()
    assert list(sys.stdin) == ["caf\udce9\n", "next\n"]
    protect_standard_streams()  # after reading, when the setting can no longer be changed


def command(*arguments: str) -> list[str]:
    program = (
        f"import runpy, sys; sys.argv[1:] = {list(arguments)!r}; runpy.run_path({str(ROOT / 'tests/conftest.py')!r}); "
    )
    return [sys.executable, "-c", program + "from uniworld.__main__ import main; sys.exit(main())"]


@pytest.mark.parametrize(
    "redirection",
    [
        pytest.param("2>&-", marks=pytest.mark.slow),
        pytest.param(">/dev/full 2>/dev/full", marks=pytest.mark.slow),
        "<&- >&- 2>&-",
    ],
)
def test_a_run_without_output_channels_succeeds(tmp_path, redirection):
    (tmp_path / "w.json").write_text(PICTURE)
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command("run", "w.json", "--json")]
    assert subprocess.run(shell, cwd=tmp_path, timeout=60, stdin=subprocess.DEVNULL).returncode == 0
    assert [file.name for file in (tmp_path / "output").iterdir()] == ["p_00001_.png"]


@pytest.mark.slow
def test_a_run_continues_when_its_reader_exits(tmp_path):
    (tmp_path / "w.json").write_text(PICTURE)
    shell = ["bash", "-o", "pipefail", "-c", '"$@" | true', "bash", *command("run", "w.json", "--json")]
    assert subprocess.run(shell, cwd=tmp_path, timeout=60, stderr=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "output" / "p_00001_.png").is_file()


@pytest.mark.parametrize(
    "arguments", [["nodes"], pytest.param(["check", "edit", "--api", "-"], marks=pytest.mark.slow)]
)
def test_a_result_that_cannot_be_written_is_a_failure(arguments):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


class Fragile(io.StringIO):
    broken = False

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError(errno.ENOSPC, "no space left")
        return super().write(text)


def test_a_bar_that_cannot_be_drawn_does_not_block_bars_of_other_threads() -> None:
    def draw(file: Fragile, broken: bool) -> None:
        bar = progress_bar(total=2, file=file)
        file.broken = broken
        with contextlib.suppress(OSError):
            bar.refresh()
        file.broken = False
        bar.close()

    for broken in (True, False):
        thread = threading.Thread(target=draw, args=(Fragile(), broken), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "it waits for the lock that the first bar still holds"


def test_every_progress_bar_is_created_in_streams() -> None:
    files = [
        *ROOT.glob("*.py"),
        *(file for room in ("uniworld_core", "nodes", "training") for file in (ROOT / room).rglob("*.py")),
    ]
    assert [file.name for file in files if re.search(r"^\s*(from|import) tqdm\b", file.read_text("utf-8"), re.M)] == [
        "streams.py"
    ]
