"""No output channel ends a command: full disks, closed descriptors, readers that have gone or have stopped reading."""

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
from uniworld.streams import LastingStream, lost, progress_bar, say

pytestmark = pytest.mark.skipif(os.name == "nt", reason="descriptors as POSIX has them")

ROOT = Path(__file__).resolve().parents[1]
PICTURE = '{"1": {"class_type": "LoadImage", "inputs": {"image": "shapes.png"}}, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}}}'


def stream_to(descriptor: int, patience: float | None = 0.1) -> io.TextIOWrapper:
    raw = LastingStream(io.FileIO(descriptor, "w", closefd=False), patience)
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
    assert lost(stream) is None
    assert stream.fileno() == pipe[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_a_full_disk_loses_text_and_no_more():
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        stream = stream_to(full.fileno())
        print("lost", file=stream)
        stream.flush()
        assert lost(stream).errno == errno.ENOSPC


def test_a_descriptor_that_was_closed_meanwhile_loses_text_and_no_more(pipe):
    stream = stream_to(pipe[1])
    os.close(pipe[1])
    print("lost", file=stream)
    assert lost(stream).errno == errno.EBADF


def test_a_reader_that_has_gone_is_no_fault(pipe):
    stream = stream_to(pipe[1])
    os.close(pipe[0])
    print("unread", file=stream)
    assert lost(stream) is None


def test_a_reader_that_has_stopped_is_waited_for_once_and_heard_again(pipe):
    stream = stream_to(pipe[1])
    began = time.monotonic()
    for _ in range(400):
        print("x" * 1000, file=stream)  # far more than a pipe holds
    assert time.monotonic() - began < 5
    assert lost(stream).errno == errno.EAGAIN
    os.read(pipe[0], 1 << 20)
    print("heard", file=stream)
    assert os.read(pipe[0], 1 << 20).endswith(b"heard\n")


def test_a_stream_without_a_file_takes_everything():
    stream = io.TextIOWrapper(io.BufferedWriter(LastingStream(None)), line_buffering=True)
    assert not stream.isatty()
    print("lost", file=stream)
    assert lost(stream).errno == errno.EBADF


class Broken(io.StringIO):
    """A stream in the place of the process's own that fails at everything."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "the terminal has gone")


@pytest.mark.parametrize("stream", [None, Broken(), io.StringIO()])
def test_sentences_for_people_never_fail(monkeypatch, stream):
    if isinstance(stream, io.StringIO) and not isinstance(stream, Broken):
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    say("a sentence")


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
def test_a_run_without_output_channels_is_done(tmp_path, redirection):
    (tmp_path / "w.json").write_text(PICTURE)
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command("run", "w.json", "--json")]
    assert subprocess.run(shell, cwd=tmp_path, timeout=60, stdin=subprocess.DEVNULL).returncode == 0
    assert [file.name for file in (tmp_path / "output").iterdir()] == ["p_00001_.png"]


@pytest.mark.slow
def test_a_run_goes_on_when_its_reader_goes(tmp_path):
    (tmp_path / "w.json").write_text(PICTURE)
    shell = ["bash", "-o", "pipefail", "-c", '"$@" | true', "bash", *command("run", "w.json", "--json")]
    assert subprocess.run(shell, cwd=tmp_path, timeout=60, stderr=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "output" / "p_00001_.png").is_file()


@pytest.mark.parametrize(
    "arguments", [["nodes"], pytest.param(["check", "edit", "--api", "-"], marks=pytest.mark.slow)]
)
def test_output_that_is_the_result_and_could_not_be_written_is_a_failure(arguments):
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


def test_a_bar_that_cannot_be_drawn_keeps_no_other_thread_from_drawing_one() -> None:
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
        assert not thread.is_alive(), "it waits for the lock that the first one holds"


def test_every_bar_is_such_a_one() -> None:
    files = [
        *ROOT.glob("*.py"),
        *(file for room in ("uniworld_core", "nodes", "training") for file in (ROOT / room).rglob("*.py")),
    ]
    assert [file.name for file in files if re.search(r"^\s*(from|import) tqdm\b", file.read_text("utf-8"), re.M)] == [
        "streams.py"
    ]
