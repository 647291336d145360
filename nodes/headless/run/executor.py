"""Run checked workflows one after the other, and cache results between them.

ComfyUI's own executor is not available as a library: it imports ComfyUI's server, memory management and global command
line, and is not published as a package. This one follows its semantics, which the tests compare.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ...host import PlainHost
from ..registry.calls import run_sync
from ..registry.interop import hook_progress
from ..registry.registry import Registry
from .cache import ResultCache
from .events import EventHook
from .expansion import DynamicPrompt
from .graph_run import GraphRun, RunResult
from .stopping import StopRequest

__all__ = ["EventHook", "Executor", "RunResult"]


class Executor:
    """Runs workflows one at a time; a run reuses the results of earlier ones.

    It may be called from any thread. A second `run` waits for the first.

    Args:
        kept_results: number of node results up to which other workflows' are kept; the last workflow's always are.
        run_coroutine: runs a coroutine to completion.
    """

    def __init__(
        self,
        registry: Registry,
        host: PlainHost,
        kept_results: int = 0,
        run_coroutine: Callable[[Coroutine[Any, Any, RunResult]], RunResult] = run_sync,
    ) -> None:
        self._run_coroutine = run_coroutine
        self.registry = registry
        self.host = host
        self._kept_results = kept_results
        self._cache = ResultCache(kept_results)
        self._running = threading.Lock()

    def forget(self) -> None:
        """Drop all kept results."""
        with self._running:
            self._cache = ResultCache(self._kept_results)

    def run(
        self,
        prompt: dict[str, object],
        outputs: list[str],
        *,
        original: dict[str, object] | None = None,
        prompt_id: str = "",
        extra_pnginfo: dict[str, object] | None = None,
        salts: Mapping[str, str] | None = None,
        stop: StopRequest | None = None,
        on_event: EventHook = lambda _name, _data: None,
    ) -> RunResult:
        """Run output nodes of a workflow and everything they depend on.

        Args:
            prompt: the workflow, as returned by `validate_prompt`.
            outputs: ids of the output nodes.
            original: the workflow as the user wrote it, for the hidden input PROMPT; `prompt` if None.
            extra_pnginfo: value of the hidden input EXTRA_PNGINFO, such as `{"workflow": ...}`.
            salts: by node id, anything else that its result depends on. A cached result is valid for one salt only.
            stop: a request to stop; if it is already set, the run is interrupted before the first node.
        """
        with self._running:
            # As in ComfyUI, an interrupt requested while nothing was running has no effect.
            self.host.interrupted.clear()
            if stop:
                self.host.interrupted.set()
            hook_progress()  # before each run, as a pack may have imported ComfyUI's modules since the last one
            graph = DynamicPrompt(prompt, prompt if original is None else original)
            run = GraphRun(
                self.registry, self.host, self._cache, graph, extra_pnginfo, prompt_id, on_event, salts or {}
            )
            try:
                return self._run_coroutine(run.execute(outputs))
            finally:
                self.host.progress_hook = self.host.warning_hook = None
                self.host.interrupted.clear()
