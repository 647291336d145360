"""Exit codes and messages: a user error exits with 2, a bug or a failure of the machine with 1, and none is a traceback."""

from __future__ import annotations

import errno
import io
import json
import pickle
import sys
import warnings
from pathlib import Path

import pytest
from uniworld import command_line
from uniworld.command_line import MISUSED, UsageError, describe_error, exit_code_of, is_bug, print_last_line
from uniworld.training.data.published import BadData
from uniworld.uniworld_core.errors import RunFailed, UniWorldError


def reshape() -> None:
    import numpy as np

    np.zeros(3).reshape(2, 2)


OUT_OF_MEMORY = type("OutOfMemoryError", (RuntimeError,), {})
BUG = "This is a bug of uniworld: run again with --debug and report it to its developers with the traceback."


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UniWorldError("The steps are 0. Give 1 or more."), 2, "The steps are 0. Give 1 or more."),
        (UsageError("usage: uniworld"), 2, "usage: uniworld"),
        (RunFailed("The loss is not finite."), 1, "The loss is not finite."),
        (KeyboardInterrupt(), 1, "Interrupted."),
        (ValueError("cannot reshape"), 1, f"uniworld failed: ValueError: cannot reshape. {BUG}"),
        (KeyError(), 1, f"uniworld failed: KeyError. {BUG}"),
        (RuntimeError("a\n\n  b."), 1, f"uniworld failed: RuntimeError: a b. {BUG}"),
        (
            OSError(errno.ENOSPC, "No space left"),
            1,
            "OSError: [Errno 28] No space left (run again with --debug for details)",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "x"),
            2,
            "'x' cannot be used: File name too long. Check the path.",
        ),
        (RuntimeError("Symlink loop from 'x'"), 2, "Symlink loop from 'x'. Check the path."),
        (MemoryError(), 1, "MemoryError (run again with --debug for details)"),
        (ImportError("no torch"), 1, "ImportError: no torch (run again with --debug for details)"),
        (OUT_OF_MEMORY("CUDA"), 1, "OutOfMemoryError: CUDA (run again with --debug for details)"),
    ],
)
def test_exit_code_and_message_of_an_error(
    error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(lambda: raising(error), debug=False, last_line=print_last_line) == code
    out, err = capsys.readouterr()
    assert err == f"{sentence}\n"
    assert json.loads(out) == {
        "event": "invalid" if code == MISUSED else "error", "message": sentence, "problems": [sentence],
    }  # fmt: skip


def test_an_error_of_numpy_is_a_bug_and_its_traceback_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: reshape() or 0, debug=True) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].endswith("report it to its developers with the traceback above.")


def test_every_problem_is_listed_with_the_prefix_of_its_process(capsys: pytest.CaptureFixture[str]) -> None:
    error = UniWorldError("Two things.", ["one", "two"])
    assert exit_code_of(lambda: raising(error), debug=False, last_line=print_last_line, prefix="process 1: ") == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["problems"] == ["one", "two"]
    assert err == "process 1: Two things.\n"


def test_device_and_network_errors_of_torch_are_not_bugs() -> None:
    torch = pytest.importorskip("torch")
    assert not is_bug(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_bug(torch.distributed.DistNetworkError("gone"))
    assert is_bug(RuntimeError("shapes do not match"))


def test_a_long_message_is_truncated() -> None:
    assert len(describe_error(RuntimeError("x" * 10_000))) == 1000


def test_errors_keep_their_problems_when_pickled() -> None:
    for error in (UniWorldError("a", ["b", "c"]), BadData(Path("list.txt"), ["b", "c"])):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.problems) == (type(error), str(error), ["b", "c"])


def test_a_command_fails_if_its_result_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from uniworld.command_line import checked_exit_code

    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert (checked_exit_code(0, output_is_result=True), checked_exit_code(0, output_is_result=False)) == (1, 0)
    assert checked_exit_code(2, output_is_result=True) == 2


def test_warnings_of_the_package_are_printed_without_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    package = Path(command_line.__file__).parent

    def command() -> int:
        for file in ("training/editr1/loop.py", ".venv/lib/other/loop.py"):
            print(warnings.formatwarning("Too small.", UserWarning, str(package / file), 1), end="")
        return 0

    before = warnings.formatwarning
    assert exit_code_of(command, debug=False) == 0
    own, other = capsys.readouterr().out.splitlines()
    assert own == "Warning: Too small."
    assert other.endswith("other/loop.py:1: UserWarning: Too small.")
    assert warnings.formatwarning is before
