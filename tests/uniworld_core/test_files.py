"""Files and folders are there as a whole or not at all, locks end with their process: what every part of the house builds on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from uniworld.uniworld_core import files
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.files import (
    LockHeld,
    acquire_lock,
    atomic_file,
    atomic_folder,
    check_locks,
    read_limited,
    remove_stale_parts,
    rename_new,
    sha256_file,
    sync_folder,
    sync_tree,
    temporary_file,
    write_atomic,
)

ROOT = Path(__file__).resolve().parents[2]
START = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("uniworld", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}])
sys.modules["uniworld"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["uniworld"])
from uniworld.uniworld_core.files import *
"""
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such thing")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process of ours; its standard output reports its progress."""
    command = [sys.executable, "-c", START + program, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is put on disk and what gets its name, in order."""
    done: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def noted_fsync(file: int) -> None:
        done.append("sync folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "sync file")
        fsync(file)

    def noted(act: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def named(self: Path, to: Path) -> Path:
            done.append("name")
            return act(self, to)

        return named

    monkeypatch.setattr(files.os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted(replace))
    monkeypatch.setattr(Path, "rename", noted(rename))
    return done


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process cannot write to, whoever runs the tests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)


class TestAWholeFile:
    def test_takes_its_place_over_what_was_there(self, tmp_path: Path) -> None:
        for content in (b"first", b"second"):
            with atomic_file(tmp_path / "a.txt") as file:
                file.write(content)
                assert not (tmp_path / "a.txt").exists() or (tmp_path / "a.txt").read_bytes() != content
            assert (tmp_path / "a.txt").read_bytes() == content
        assert names(tmp_path) == {"a.txt"}

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
    def test_that_is_not_finished_leaves_what_was_there(self, tmp_path: Path, error: type[BaseException]) -> None:
        (tmp_path / "a.txt").write_bytes(b"old")
        with pytest.raises(error), atomic_file(tmp_path / "a.txt") as file:  # noqa: PT012
            file.write(b"ne")
            raise error
        assert (tmp_path / "a.txt").read_bytes() == b"old"
        assert names(tmp_path) == {"a.txt"}

    @posix
    def test_on_a_full_disk_leaves_what_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"old")
        program = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # no file can be longer
try:
    write_atomic(Path(sys.argv[1]) / "a.txt", b"new" * 4000)
except OSError as error:
    print(error.errno)
"""
        with run(program, tmp_path) as process:
            assert int(first_line(process)) == errno.EFBIG
        assert (tmp_path / "a.txt").read_bytes() == b"old"
        assert names(tmp_path) == {"a.txt"}

    def test_whose_content_the_disk_does_not_take_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        (tmp_path / "a.txt").write_bytes(b"old")
        monkeypatch.setattr(files.os, "fsync", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write_atomic(tmp_path / "a.txt", b"new")
        assert (tmp_path / "a.txt").read_bytes() == b"old"
        assert names(tmp_path) == {"a.txt"}

    @posix
    def test_is_on_disk_before_it_has_its_name_and_then_its_name_is(self, tmp_path: Path, synced: list[str]) -> None:
        write_atomic(tmp_path / "a.txt", b"content")
        assert synced == ["sync file", "name", "sync folder"]
        del synced[:]
        write_atomic(tmp_path / "a.txt", b"content", sync=False)
        assert synced == ["name"]

    @pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, ".hidden", "a b\n.c"])
    def test_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        if os.name == "nt" and "\n" in name:
            pytest.skip("no name on Windows")
        write_atomic(tmp_path / name, b"content")
        assert names(tmp_path) == {name}

    @posix
    def test_whose_writer_is_killed_leaves_what_was_there_and_a_part_that_is_swept(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"old")
        program = """
with atomic_file(Path(sys.argv[1]) / "a.txt") as file:
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""
        with run(program, tmp_path) as process:
            assert first_line(process) == "half\n"
            process.kill()
        assert (tmp_path / "a.txt").read_bytes() == b"old"
        assert len(names(tmp_path)) == 2
        remove_stale_parts(tmp_path)
        assert names(tmp_path) == {"a.txt"}

    def test_that_cannot_be_written_raises_what_the_system_says(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            write_atomic(tmp_path / "missing" / "a.txt", b"")
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError):
            write_atomic(tmp_path / "file" / "a.txt", b"")

    @posix
    def test_in_a_read_only_folder_raises_what_the_system_says(self, read_only: Path) -> None:
        with pytest.raises(PermissionError):
            write_atomic(read_only / "a.txt", b"")
        assert names(read_only) == set()

    def test_over_a_folder_leaves_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(OSError, match="folder"):
            write_atomic(tmp_path / "folder", b"")
        assert names(tmp_path) == {"folder"}


class TestANewName:
    @pytest.fixture(params=["links", "no links"])
    def links(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """File systems with hard links and without."""

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        if request.param == "no links":
            monkeypatch.setattr(files.os, "link", refuse)

    @pytest.mark.usefixtures("links")
    def test_is_given_once_and_never_taken_over(self, tmp_path: Path) -> None:
        given = []
        for content in (b"first", b"second"):
            with temporary_file(tmp_path, "a.txt") as file:
                file.write(content)
                given.append(rename_new(file, tmp_path / "a.txt"))
        assert given == [True, False]
        assert (tmp_path / "a.txt").read_bytes() == b"first"
        assert names(tmp_path) == {"a.txt"}

    @pytest.mark.usefixtures("links")
    def test_may_be_tried_again_with_another(self, tmp_path: Path) -> None:
        (tmp_path / "1").touch()
        with temporary_file(tmp_path) as file:
            file.write(b"content")
            assert [rename_new(file, tmp_path / name) for name in ("1", "2")] == [False, True]
        assert (tmp_path / "2").read_bytes() == b"content"
        assert names(tmp_path) == {"1", "2"}

    def test_goes_to_one_of_many_who_want_it(self, tmp_path: Path) -> None:
        def want(number: int) -> bool:
            with temporary_file(tmp_path) as file:
                file.write(str(number).encode())
                return rename_new(file, tmp_path / "a.txt")

        with ThreadPoolExecutor(8) as pool:
            given = list(pool.map(want, range(64)))
        assert sum(given) == 1
        assert (tmp_path / "a.txt").read_text() == str(given.index(True))


class TestSweeping:
    def test_takes_parts_and_nothing_else(self, tmp_path: Path) -> None:
        digits = "0123456789abcdef"
        swept = {f".{digits}.part", f".a.txt.{digits}.part", f".{'x' * 32}.{digits}.part"}
        stay = {f"{digits}.part", ".mine.part", ".a.part", f".{digits[:-1]}.part", f".{digits}.part.txt", "a.part"}
        for name in swept | stay:
            (tmp_path / name).touch()
        remove_stale_parts(tmp_path)
        assert names(tmp_path) == stay

    def test_leaves_those_of_others_and_those_in_work(self, tmp_path: Path) -> None:
        with contextlib.ExitStack() as stack:
            mine, other = (
                Path(stack.enter_context(temporary_file(tmp_path, f"part-{writer}.000001.safetensors")).name)
                for writer in ("0-of-11", "0-of-1")
            )
            remove_stale_parts(tmp_path, age=60)
            assert mine.exists()
            remove_stale_parts(tmp_path, "part-0-of-1.")
            assert (mine.exists(), other.exists()) == (True, False)
            os.utime(mine, (time.time() - 90,) * 2)
            remove_stale_parts(tmp_path, age=60)
            assert not mine.exists()

    def test_a_folder_that_is_not_there_is_nothing(self, tmp_path: Path) -> None:
        remove_stale_parts(tmp_path / "missing")


class TestAWholeFolder:
    def test_takes_its_name_when_all_is_in_it(self, tmp_path: Path) -> None:
        left = tmp_path / ".new.uniworld-partial"
        left.mkdir()
        (left / "of a killed attempt").touch()
        with atomic_folder(tmp_path / "new") as folder:
            (folder / "a").mkdir()
            (folder / "a" / "b.txt").write_text("content")
            assert not (tmp_path / "new").exists()
        assert names(tmp_path) == {"new"}
        assert [path.name for path in (tmp_path / "new").rglob("*")] == ["a", "b.txt"]

    def test_that_is_not_finished_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "new") as folder:  # noqa: PT012
            (folder / "a.txt").touch()
            raise KeyboardInterrupt
        assert names(tmp_path) == set()

    def test_never_replaces_what_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        for name in ("old", "link"):
            with pytest.raises(FileExistsError), atomic_folder(tmp_path / name):
                pytest.fail("nothing is written")
        with pytest.raises(FileExistsError), atomic_folder(tmp_path / "late"):
            (tmp_path / "late").mkdir()
        assert names(tmp_path) == {"old", "link", "late"}

    @posix
    def test_is_on_disk_before_it_has_its_name(self, tmp_path: Path, synced: list[str]) -> None:
        with atomic_folder(tmp_path / "new") as folder:
            (folder / "a").mkdir()
            (folder / "a" / "b.txt").touch()
        assert sorted(synced[:3]) == ["sync file", "sync folder", "sync folder"]
        assert synced[3:] == ["name", "sync folder"]


@posix
class TestSyncing:
    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
    def test_of_a_folder_is_left_out_where_the_file_system_cannot(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        self.fail_with(monkeypatch, number)
        sync_folder(tmp_path)

    def test_of_a_folder_that_fails_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail_with(monkeypatch, errno.EIO)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            sync_folder(tmp_path)

    def test_of_a_tree_takes_every_file_and_folder(self, tmp_path: Path, synced: list[str]) -> None:
        for name in ("a", "a/b", "c"):
            (tmp_path / name).mkdir()
        for name in ("a/1", "a/b/2", "3"):
            (tmp_path / name).touch(0o444)
        sync_tree(tmp_path)
        assert sorted(synced) == ["sync file"] * 3 + ["sync folder"] * 4

    @staticmethod
    def fail_with(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        def fail(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files.os, "fsync", fail)


HOLDS = """
held = acquire_lock(Path(sys.argv[1]), "busy")
print("held", flush=True)
sys.stdin.read()
"""


class TestALock:
    def test_is_held_once(self, tmp_path: Path) -> None:
        with acquire_lock(tmp_path / "lock", "unused"):
            with pytest.raises(LockHeld, match=r"^Another has it\.$"):
                acquire_lock(tmp_path / "lock", "Another has it.")
            with acquire_lock(tmp_path / "other", "unused"):
                pass
        with acquire_lock(tmp_path / "lock", "unused"):
            pass
        assert names(tmp_path) == {"lock", "other"}

    @posix
    def test_of_another_process_ends_when_that_is_killed(self, tmp_path: Path) -> None:
        with run(HOLDS, tmp_path / "lock") as process:
            assert first_line(process) == "held\n"
            with pytest.raises(LockHeld):
                acquire_lock(tmp_path / "lock", "busy")
            process.kill()
        acquire_lock(tmp_path / "lock", "busy").close()

    def test_can_be_waited_for(self, tmp_path: Path) -> None:
        held, taken = acquire_lock(tmp_path / "lock", "unused"), threading.Event()

        def wait() -> None:
            with acquire_lock(tmp_path / "lock", "unused", wait=True):
                taken.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not taken.wait(0.2)
        held.close()
        waiting.join(10)
        assert taken.is_set()

    def test_keeps_what_its_file_holds(self, tmp_path: Path) -> None:
        (tmp_path / "lock").write_bytes(b"content")
        acquire_lock(tmp_path / "lock", "unused").close()
        assert (tmp_path / "lock").read_bytes() == b"content"

    @posix
    @pytest.mark.parametrize("wait", [False, True])
    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_on_a_file_system_without_locks_is_not_taken_for_held(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, wait: bool
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(UniWorldError) as caught:
            acquire_lock(tmp_path / "lock", "busy", wait)
        assert type(caught.value) is UniWorldError
        assert str(caught.value) == (
            f"'{tmp_path / 'lock'}' cannot be locked ({os.strerror(number)}): its file system does not support locks. Choose a "
            "folder on another disk."
        )

    @posix
    def test_can_be_looked_for_in_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        check_locks(tmp_path)
        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(UniWorldError, match=re.escape(f"'{tmp_path}' cannot be locked")):
            check_locks(tmp_path)
        assert names(tmp_path) == set()

    def test_that_cannot_be_opened_raises_what_the_system_says(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            acquire_lock(tmp_path / "missing" / "lock", "busy")

    @posix
    def test_in_a_read_only_folder_raises_what_the_system_says(self, read_only: Path) -> None:
        with pytest.raises(PermissionError):
            acquire_lock(read_only / "lock", "busy")

    @posix
    def test_does_not_follow_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            acquire_lock(tmp_path / "lock", "busy")
        assert not (tmp_path / "elsewhere").exists()

    @posix
    def test_is_not_inherited_by_the_programs_that_are_started(self, tmp_path: Path) -> None:
        held = acquire_lock(tmp_path / "lock", "unused")
        with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
            held.close()
            acquire_lock(tmp_path / "lock", "busy").close()
            assert child.stdin is not None
            child.stdin.close()


@pytest.mark.parametrize("size", [0, 1, 2**20, 3 * 2**20 + 7])
def test_the_checksum_is_that_of_the_whole_content(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


@pytest.mark.parametrize("size", [0, 2**20, 2**20 + 5])
def test_a_file_is_read_up_to_a_limit(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    assert read_limited(tmp_path / "file", size) == bytes(size)
    assert read_limited(tmp_path / "file", size - 1) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are files of Unix")
def test_devices_and_pipes_are_read_up_to_a_limit(tmp_path: Path) -> None:
    assert read_limited(Path("/dev/zero"), 2**20 + 3) is None
    os.mkfifo(tmp_path / "pipe")
    for limit, content in ((5, b"abcde"), (4, None)):
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit((tmp_path / "pipe").write_bytes, b"abcde")
            assert read_limited(tmp_path / "pipe", limit) == content
            written.result()


# What sets up the environment has nothing but the standard library.
SET_UP = "nodes/headless/bootstrap.py"


@pytest.mark.parametrize(
    ("use", "others"),
    [
        (r"os\.fsync\(", set()),
        (r"os\.(replace|rename|link)\(", set()),
        (r"\b(fcntl|msvcrt)\b", {SET_UP}),
        (r"(from|import) filelock\b", set()),
        (r"while block := ", set()),
    ],
)
def test_only_the_files_module_syncs_renames_and_locks(use: str, others: set[str]) -> None:
    rooms = [ROOT / name for name in ("uniworld_core", "nodes", "training")]
    sources = [*ROOT.glob("*.py"), *(file for room in rooms for file in room.rglob("*.py"))]
    found = {file.relative_to(ROOT).as_posix() for file in sources if re.search(use, file.read_text(encoding="utf-8"))}
    assert found <= {"uniworld_core/files.py"} | others
    assert found
