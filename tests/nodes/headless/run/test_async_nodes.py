"""Nodes with coroutines run concurrently, and fail, stop and report like other nodes."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import types
from typing import Any

import pytest
from uniworld.nodes import host
from uniworld.nodes.headless.check.validate import validate_prompt
from uniworld.nodes.headless.registry.calls import CoroutineRunner, run_sync
from uniworld.nodes.headless.run.schedule import Schedule

STEP = 0.2  # seconds that a node waits; long compared with everything else


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


class Waiting:
    """Waits, and records how many of its instances waited at the same time."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    now = most = cancelled = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {}), "seconds": ("FLOAT", {"default": STEP})}}

    async def run(self, value: int, seconds: float) -> tuple[int]:
        Waiting.now += 1
        Waiting.most = max(Waiting.most, Waiting.now)
        progress = host.current().progress(value + 10)
        try:
            await asyncio.sleep(seconds)
            progress.update(value)
            return (value,)
        except asyncio.CancelledError:
            Waiting.cancelled += 1
            raise
        finally:
            Waiting.now -= 1


class WaitingOnce(Waiting):
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)

    async def run(self, value: list[int], seconds: list[float]) -> tuple[list[int]]:  # type: ignore[override]
        await asyncio.sleep(0.001)
        return ([item + 1 for item in value],)


class Breaking(Waiting):
    error: BaseException = RuntimeError("The wire is cut.")

    async def run(self, value: int, seconds: float) -> tuple[int]:
        await asyncio.sleep(seconds)
        raise self.error


class AsyncSwitch:
    """Requests one of its lazy inputs after an await."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        lazy = ("INT", {"lazy": True})
        return {"required": {"which": ("BOOLEAN", {}), "yes": lazy, "no": lazy}}

    async def check_lazy_status(self, which: bool, yes: int | None, no: int | None) -> list[str]:
        await asyncio.sleep(0.001)
        return ["yes" if which else "no"]

    def run(self, which: bool, yes: int | None, no: int | None) -> tuple[Any]:
        return (yes if which else no,)


class AsyncChecked(Waiting):
    OUTPUT_NODE = True

    @classmethod
    async def VALIDATE_INPUTS(cls, value: int) -> bool | str:
        await asyncio.sleep(0.001)
        if value == 14:
            raise SystemExit("14 exits")
        return True if value != 13 else "13 brings bad luck."


class AsyncChanging(Waiting):
    state: Any = 0

    @classmethod
    async def IS_CHANGED(cls, value: int, seconds: float) -> Any:
        await asyncio.sleep(0.001)
        if isinstance(cls.state, BaseException):
            raise cls.state
        return cls.state


@pytest.fixture(autouse=True)
def classes(registry, monkeypatch):
    Waiting.now = Waiting.most = Waiting.cancelled = 0
    for one in (Waiting, WaitingOnce, Breaking, AsyncSwitch, AsyncChecked, AsyncChanging):
        monkeypatch.setitem(registry.classes, one.__name__, one)


def waiting_three() -> dict[str, Any]:
    prompt = {str(i): node("Waiting", value=i, seconds=STEP) for i in (1, 2, 3)}
    return {**prompt, **{f"show{i}": node("Show", value=[str(i), 0]) for i in (1, 2, 3)}}


def test_independent_coroutines_run_concurrently(run):
    start = time.perf_counter()
    result = run(waiting_three())
    assert time.perf_counter() - start < 2 * STEP
    assert Waiting.most == 3
    assert {key: ui["text"] for key, ui in result.ui.items()} == {"show1": ["1"], "show2": ["2"], "show3": ["3"]}


def test_other_nodes_run_while_a_coroutine_waits(run, toys):
    events: list[Any] = []
    prompt = {
        "1": node("Waiting", value=1, seconds=STEP), "2": node("Show", value=["1", 0]),
        "3": node("Number", value=3), "4": node("Show", value=["3", 0]),
    }  # fmt: skip
    run(prompt, events)
    assert [data["node"] for name, data in events if name == "node_finished"] == ["3", "4", "1", "2"]


def test_a_coroutine_waits_for_its_inputs(run):
    prompt = {
        "1": node("Waiting", value=4, seconds=0.01), "2": node("Waiting", value=["1", 0], seconds=0.01),
        "3": node("Show", value=["2", 0]),
    }  # fmt: skip
    assert run(prompt).ui["3"]["text"] == ["4"]
    assert Waiting.most == 1


def test_the_items_of_a_list_wait_concurrently_and_keep_their_order(run):
    prompt = {
        "0": node("Spread", count=3), "1": node("Waiting", value=["0", 0], seconds=STEP),
        "2": node("WaitingOnce", value=["1", 0], seconds=0), "3": node("Show", value=["2", 0]),
    }  # fmt: skip
    assert run(prompt).ui["3"]["text"] == ["1", "2", "3"]
    assert Waiting.most == 3


def test_a_blocked_item_does_not_stop_the_others(run, registry, monkeypatch):
    from uniworld.nodes.headless.registry.calls import ExecutionBlocker

    class BlockOne(Waiting):
        async def run(self, value: int, seconds: float) -> tuple[Any]:  # type: ignore[override]
            await asyncio.sleep(seconds)
            return (ExecutionBlocker() if value == 1 else value,)

    monkeypatch.setitem(registry.classes, "BlockOne", BlockOne)
    prompt = {
        "0": node("Spread", count=3), "1": node("BlockOne", value=["0", 0], seconds=0.001),
        "2": node("Waiting", value=["1", 0], seconds=0.001), "3": node("Show", value=["2", 0]),
    }  # fmt: skip
    assert run(prompt).ui["3"]["text"] == ["0", "2"]


@pytest.mark.parametrize("which", [True, False])
def test_check_lazy_status_may_be_a_coroutine(run, toys, which):
    prompt = {
        "1": node("Number", value=1), "2": node("Number", value=2),
        "3": node("AsyncSwitch", which=which, yes=["1", 0], no=["2", 0]), "4": node("Show", value=["3", 0]),
    }  # fmt: skip
    assert run(prompt).ui["4"]["text"] == ["1" if which else "2"]
    assert len([call for call in toys.calls if call.startswith("Number")]) == 1


@pytest.mark.parametrize(("value", "wanted"), [(1, []), (13, ["13 brings bad luck."]), (14, ["14 exits"])])
def test_validate_inputs_may_be_a_coroutine(registry, value, wanted):
    prompt = {"1": node("AsyncChecked", value=value, seconds=0.001)}
    sentences = validate_prompt(prompt, registry).sentences
    assert [word in sentence for word, sentence in zip(wanted, sentences)] == [True] * len(sentences)
    assert len(sentences) == len(wanted)

    async def inside_a_loop() -> list[str]:
        return validate_prompt(prompt, registry).sentences

    assert asyncio.run(inside_a_loop()) == sentences


def test_is_changed_may_be_a_coroutine(run, monkeypatch):
    def ran() -> bool:
        events: list[Any] = []
        run({"1": node("AsyncChanging", value=1, seconds=0.001), "2": node("Show", value=["1", 0])}, events)
        return any(name == "executing" and data["node"] == "1" for name, data in events)

    assert [ran(), ran()] == [True, False]
    monkeypatch.setattr(AsyncChanging, "state", 1)
    assert [ran(), ran()] == [True, False]
    for error in (ValueError("unsure"), SystemExit(3)):  # neither may stop the program
        monkeypatch.setattr(AsyncChanging, "state", error)
        assert [ran(), ran()] == [True, True]


@pytest.mark.parametrize("error", [
    RuntimeError("The wire is cut."), SystemExit(3), asyncio.CancelledError("given up"), asyncio.TimeoutError("late"),
])  # fmt: skip
def test_an_error_ends_the_run_and_cancels_waiting_nodes(run, monkeypatch, error):
    monkeypatch.setattr(Breaking, "error", error)
    events: list[Any] = []
    prompt = {
        "1": node("Waiting", value=1, seconds=60), "2": node("Show", value=["1", 0]),
        "3": node("Breaking", value=1, seconds=0.01), "4": node("Show", value=["3", 0]),
    }  # fmt: skip
    start = time.perf_counter()
    result = run(prompt, events)
    assert time.perf_counter() - start < 10
    assert result.status == "error"
    assert result.error["node_id"] == "3"
    assert result.error["current_inputs"] == {"value": [1], "seconds": [0.01]}
    assert type(error).__name__ in result.error["exception_type"]
    assert str(error) in result.sentence
    assert Waiting.cancelled == 1
    assert events[-1][0] == "execution_error"


def test_an_error_cancels_all_waiting_items_of_a_list(run):
    prompt = {
        "0": node("Spread", count=3), "1": node("Failing", value=1),
        "2": node("Waiting", value=["0", 0], seconds=60), "3": node("Show", value=["2", 0]), "4": node("Show", value=["1", 0]),
    }  # fmt: skip
    assert run(prompt).error["node_id"] == "1"
    assert Waiting.cancelled == 3


def test_a_run_after_an_error_is_not_affected(run):
    prompt = {"3": node("Breaking", value=1, seconds=0.001), "4": node("Show", value=["3", 0])}
    assert run(prompt).status == "error"
    assert run({"1": node("Waiting", value=7, seconds=0.001), "2": node("Show", value=["1", 0])}).status == "success"


def test_an_interrupt_stops_coroutines_that_wait(run, plain):
    events: list[Any] = []
    timer = threading.Timer(0.1, plain.interrupted.set)
    timer.start()
    prompt = waiting_three()
    for one in "123":
        prompt[one]["inputs"]["seconds"] = 60
    result = run(prompt, events)
    timer.join()
    assert result.status == "interrupted"
    assert Waiting.cancelled == 3
    assert events[-1][0] == "execution_interrupted"
    assert events[-1][1]["node_id"] == "1"


def test_progress_belongs_to_the_node_that_reports_it(run):
    events: list[Any] = []
    run(waiting_three(), events)
    progress = {data["node"]: (data["value"], data["max"]) for name, data in events if name == "progress"}
    assert progress == {"1": (1, 11), "2": (2, 12), "3": (3, 13)}


def test_progress_of_comfyuis_own_bars_is_reported(run, registry, monkeypatch):
    utils = types.ModuleType("comfy.utils")
    utils.PROGRESS_BAR_HOOK = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy.utils", utils)

    class Barred(Waiting):
        async def run(self, value: int, seconds: float) -> tuple[int]:
            hook = utils.PROGRESS_BAR_HOOK
            await asyncio.sleep(seconds)
            hook(value, 10, ("JPEG", "a picture", 512), node_id="another")
            return (value,)

    monkeypatch.setitem(registry.classes, "Barred", Barred)
    prompt = {str(i): node("Barred", value=i, seconds=0.01) for i in (1, 2)}
    events: list[Any] = []
    run({**prompt, **{f"show{i}": node("Show", value=[str(i), 0]) for i in (1, 2)}}, events)
    assert {data["node"]: data["value"] for name, data in events if name == "progress"} == {"1": 1, "2": 2}
    assert [data["image"] for name, data in events if name == "preview"] == ["a picture"] * 2


def test_progress_of_threads_that_a_node_starts_is_reported(run, registry, monkeypatch):
    class Threaded(Waiting):
        def run(self, value: int, seconds: float) -> tuple[int]:  # type: ignore[override]
            thread = threading.Thread(target=lambda: host.current().progress(5).update(value))
            thread.start()
            thread.join()
            return (value,)

    monkeypatch.setitem(registry.classes, "Threaded", Threaded)
    events: list[Any] = []
    run({"1": node("Threaded", value=2, seconds=0), "2": node("Show", value=["1", 0])}, events)
    assert [data["node"] for name, data in events if name == "progress"] == ["1"]


def test_identical_coroutines_of_successive_runs_run_once(run):
    prompt = {
        "1": node("Waiting", value=5, seconds=0.001), "2": node("Waiting", value=["1", 0], seconds=0.001),
        "3": node("Show", value=["2", 0]),
    }  # fmt: skip
    run(prompt)
    events: list[Any] = []
    run({**prompt, "4": node("Waiting", value=5, seconds=0.001), "5": node("Show", value=["4", 0])}, events)
    assert {data["node"] for name, data in events if name == "executing"} == {"5"}


def test_a_workflow_runs_in_a_thread_that_has_an_event_loop(run):
    async def notebook() -> Any:
        return run({"1": node("Waiting", value=5, seconds=0.001), "2": node("Show", value=["1", 0])})

    assert asyncio.run(notebook()).ui["2"]["text"] == ["5"]
    assert run_sync(asyncio.sleep(0, "done")) == "done"


def test_the_schedule_completes_outputs_early_and_starts_coroutines_first():
    dependencies = {"out1": ["a", "b"], "out2": ["c"], "a": [], "b": ["a"], "c": ["wait"], "wait": []}
    done: list[str] = []
    schedule = Schedule(dependencies.__getitem__, done.__contains__, lambda name: name == "wait")
    schedule.add_outputs(["out1", "out2"])
    while (name := schedule.next()) is not None:
        done.append(name)
        schedule.done(name)
    assert done == ["wait", "a", "b", "out1", "c", "out2"]
    assert schedule.waiting == []


def test_a_warning_belongs_to_the_node_that_gives_it(run, registry, monkeypatch):
    class Wary(Waiting):
        async def run(self, value: int, seconds: float) -> tuple[int]:
            await asyncio.sleep(seconds)
            host.current().warn(f"The oven is at {value}.")
            return (value,)

    monkeypatch.setitem(registry.classes, "Wary", Wary)
    events: list[Any] = []
    prompt = {str(i): node("Wary", value=i, seconds=0.01 * i) for i in (1, 2, 3)}
    run({**prompt, **{f"show{i}": node("Show", value=[str(i), 0]) for i in (1, 2, 3)}}, events)
    warnings = {data["node"]: data["message"] for name, data in events if name == "warning"}
    assert warnings == {str(i): f"The oven is at {i}." for i in (1, 2, 3)}


def test_a_runner_uses_one_loop_and_cancels_what_is_left():
    runner = CoroutineRunner()
    left = []

    async def leave() -> asyncio.AbstractEventLoop:
        async def forever() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                left.append("cancelled")

        asyncio.create_task(forever())  # noqa: RUF006 (nobody waits for it)
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async def fail() -> None:
        raise ValueError("no")

    first = runner.run(leave())
    assert left == ["cancelled"]
    with pytest.raises(ValueError, match="no"):
        runner.run(fail())
    assert runner.run(leave()) is first
    runner.close()
    assert first.is_closed()
    runner.close()


def test_a_runner_waits_for_the_threads_of_a_run():
    runner = CoroutineRunner()
    ended = []

    def work() -> None:
        time.sleep(0.1)
        ended.append("thread")

    async def start() -> asyncio.AbstractEventLoop:
        asyncio.get_running_loop().run_in_executor(None, work)
        return asyncio.get_running_loop()

    first = runner.run(start())
    assert ended == ["thread"]
    assert runner.run(asyncio.sleep(0, "done")) == "done"
    assert first.is_closed()
    runner.close()


def test_variables_of_one_run_are_not_those_of_the_next():
    runner, variable = CoroutineRunner(), contextvars.ContextVar("v", default=0)

    async def change() -> int:
        variable.set(variable.get() + 1)
        return variable.get()

    assert [runner.run(change()), runner.run(change()), variable.get()] == [1, 1, 0]
    runner.close()
