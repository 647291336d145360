"""Signals and SIGKILL at random moments: no recorded reply is paid for twice, and the result is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from ....forked import Forked
from . import shapes_world
from .fake_judge import KEY, Answer, FakeJudge, Request, serving
from .folders import imgedit
from .test_bench_generate import COPY
from .test_bench_loop import EDITS, FEW, write_workflow

LAUNCH = "import sys; from uniworld.__main__ import main; sys.exit(main(sys.argv[1:]))"
GOOD = "Prompt Compliance: 4\nVisual Seamlessness: 3\nPhysical Fidelity: 5"
PARALLEL = 3
# Seconds to wait for a phase on a busy machine: nano is loaded, and pictures are made.
PATIENCE = 300
# In each phase, processes are killed within this many seconds of its first sign.
SPANS = {"plan": 0.6, "generate": 0.6, "judge": 0.3, "score": 0.4}


class Command:
    """Runs `uniworld bench imgedit` in child processes, with all steps.

    Args:
        workflow: the workflow's file.
        items: number of items.
    """

    def __init__(self, folder: Path, workflow: str, items: int) -> None:
        self.folder, self.workflow, self.items, self.started = folder, workflow, items, 0

    def start(self, fake: FakeJudge, run: str) -> Forked:
        self.started += 1
        options = ["--data", "data", "--workflow", self.workflow, "--out", run, "--retries", "50"]
        judge = ["--judge", fake.url, "--judge-model", "m", "--parallel", str(PARALLEL), "--retry-wait", "0.01"]
        command = ["bench", "imgedit", *options, *judge]
        return Forked(self.folder, f"bench-{self.started}", LAUNCH, command)

    def finish(self, fake: FakeJudge, run: str) -> None:
        process = self.start(fake, run)
        assert process.wait(PATIENCE) == 0, process.err.read_text()

    def keys(self, run: str = "run") -> set[str]:
        """Return the keys of the recorded replies."""
        return {one["key"] for one in lines(self.folder / run / "replies.jsonl")}

    def planned(self, run: str = "run") -> int:
        """Return when the rows were last written, which is before they run."""
        rows = self.folder / run / "rows.jsonl"
        return rows.stat().st_mtime_ns if rows.is_file() else 0

    def made(self, run: str = "run") -> Counter[str]:
        """Return how often each row was recorded as done."""
        records = lines(self.folder / run / "rows.results.jsonl")
        return Counter(one["id"] for one in records if one.get("status") == "done")


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON Lines file."""
    complete = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in complete if line]


def wait_until(holds: Callable[[], object], process: Forked) -> None:
    """Wait until a condition holds or the process has ended."""
    end = time.monotonic() + PATIENCE
    while not holds() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.003)


@pytest.fixture
def copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with a workflow that returns the source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Path("copy.json").write_text(json.dumps(COPY))
    imgedit(tmp_path / "data", 12)
    return Command(tmp_path, "copy.json", 12)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not deliver these signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_replies_under_way(copying: Command, number: signal.Signals) -> None:
    with serving(lambda request: Answer(GOOD, wait=0.4)) as fake:
        process = copying.start(fake, "run")
        wait_until(lambda: len(fake.requests) >= PARALLEL, process)
        process.send_signal(number)
        assert process.wait(60) == 1
        err = process.err.read_text()
        assert "Run the same command again to continue" in err
        assert "Traceback" not in err
        assert len(fake.requests) == PARALLEL
        assert copying.keys() == {one.key for one in fake.requests}


@pytest.mark.skipif(os.name == "nt", reason="Windows does not deliver these signals")
def test_a_signal_while_pictures_are_made_asks_no_judge(copying: Command) -> None:
    imgedit(copying.folder / "data", 200)
    with serving(lambda request: Answer(GOOD)) as fake:
        process = copying.start(fake, "run")
        wait_until(copying.made, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        assert "Interrupted. Run the same command again to continue" in process.err.read_text()
        assert not fake.requests
    # What is finished can be measured.
    assert 0 < len(list((copying.folder / "run" / "pictures").iterdir())) < 200


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kills_pay_for_no_recorded_reply_twice(copying: Command) -> None:
    _kill(copying, ["generate", "judge", "judge"], lambda request: Answer(GOOD, wait=0.2))


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_twenty_kills_on_nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tasks = shapes_world.tasks_of(EDITS, 4)
    shapes_world.imgedit_of_shapes(tmp_path / "data", tasks)
    oracle = shapes_world.imgedit_script(tasks)

    def script(request: Request) -> Answer:
        answer = oracle(request)
        answer.wait = 0.2
        return answer

    # A phase can be hit only before the next one is complete.
    phases = [*["plan"] * 3, *["generate"] * 6, *["judge"] * 7, *["score"] * 4]
    _kill(Command(tmp_path, write_workflow("edit", FEW), len(tasks)), phases, script)


def _kill(command: Command, phases: list[str], script: Callable[[Request], Answer]) -> None:
    """Kill the command in these phases, and compare the result with that of an undisturbed run."""
    with serving(script) as calm:
        command.finish(calm, "calm")
    chance, hit, may_repeat = random.Random(len(phases)), Counter[str](), 0
    with serving(script) as fake:
        for phase in phases:
            recorded, before, since = command.keys(), len(fake.requests), command.planned()
            process = command.start(fake, "run")
            try:
                wait_until(partial(_has_begun, phase, command, fake, before, since), process)
                time.sleep(chance.uniform(0, SPANS[phase]))
                hit[phase] += process.poll() is None
            finally:
                process.kill()
                process.wait(30)
            asked = {one.key for one in fake.requests[before:]}
            assert not asked & recorded
            under_way = asked - command.keys()
            assert len(under_way) <= PARALLEL
            may_repeat += len(under_way)
        command.finish(fake, "run")
        keys = Counter(one.key for one in fake.requests)
    print(f"Killed: {dict(hit)}; {keys.total()} requests for {len(keys)} replies, at most {may_repeat} repeated.")
    assert set(keys) == command.keys() == command.keys("calm")
    assert keys.total() - len(keys) <= may_repeat <= PARALLEL * len(phases)
    assert hit.total() >= len(phases) - 2  # a process may have ended in time
    assert len(lines(command.folder / "run" / "replies.jsonl")) == len(keys) == command.items
    assert set(command.made().values()) == {1}
    found, wanted = (command.folder / name for name in ("run", "calm"))
    for one in ("tables", "results"):
        assert _result(found)[one] == _result(wanted)[one]
    for picture in (wanted / "pictures").iterdir():
        assert (found / "pictures" / picture.name).read_bytes() == picture.read_bytes()


def _has_begun(phase: str, command: Command, fake: FakeJudge, before: int, since: int) -> bool:
    """Whether a process has reached a phase, or can no longer reach it."""
    made = len(command.made())
    if phase == "generate":
        return made > 0
    if phase == "judge":
        return len(fake.requests) > before or len(command.keys()) == command.items
    return phase == "plan" or (command.planned() > since and len(command.keys()) == command.items)


def _result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())
