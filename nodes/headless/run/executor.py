"""Runs checked workflows one after the other, and keeps results between them.

ComfyUI's own executor is not a library: it imports ComfyUI's server, its models' memory management and its global command
line, and no package of it is published. What a workflow means to it is kept to instead, as the tests against it hold.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ...host import PlainHost
from ..registry.calls import run_to_end
from ..registry.foreign import take_progress
from ..registry.registry import Registry
from .cache import ResultCache
from .events import EventHook
from .expansion import DynamicPrompt
from .graph_run import GraphRun, RunResult
from .stopping import StopRequest

__all__ = ["EventHook", "Executor", "RunResult"]


class Executor:
    """Runs workflows one at a time; what one run computed, the next one reuses.

    It may be called from any thread. A second `run` waits for the first.

    Args:
        kept_results: how many results of nodes to keep, when other workflows run meanwhile; those of the last are always.
    """

    def __init__(self, registry: Registry, host: PlainHost, kept_results: int = 0) -> None:
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
        """Run the output nodes `outputs` of a workflow and all they need.

        Args:
            prompt: the workflow as `validate_prompt` gave it.
            original: the workflow as the user gave it, for the hidden input PROMPT; `prompt` if None.
            extra_pnginfo: for the hidden input EXTRA_PNGINFO, such as `{"workflow": ...}`.
            salts: by node id, what else its result depends on: a result is kept for one salt alone.
            stop: the run ends at once if that was asked before it began.
        """
        with self._running:
            # As in ComfyUI, an interrupt that came when nothing ran is void.
            self.host.interrupted.clear()
            if stop:
                self.host.interrupted.set()
            take_progress()
            graph = DynamicPrompt(prompt, prompt if original is None else original)
            run = GraphRun(
                self.registry, self.host, self._cache, graph, extra_pnginfo, prompt_id, on_event, salts or {}
            )
            try:
                return run_to_end(run.execute(outputs))
            finally:
                self.host.progress_hook = self.host.warning_hook = None
                self.host.interrupted.clear()
