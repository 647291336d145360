"""Counts and times of the server, in the text form that Prometheus reads.

The form is a few lines of text: prometheus_client, with its registry for the whole process, would be a dependency for
them.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping

from .machine import process_bytes

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What has run since the server started. May be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.time()
        self._runs: dict[str, int] = dict.fromkeys(("success", "error", "interrupted"), 0)
        self._run_seconds = 0.0
        self._node_seconds: dict[str, float] = defaultdict(float)
        self._node_runs: dict[str, int] = defaultdict(int)
        self._refused = 0

    def ran(self, state: str, seconds: float, nodes: list[tuple[str, float]]) -> None:
        """Count a run that ended, with the class and the seconds of each node that ran."""
        with self._lock:
            self._runs[state] += 1
            self._run_seconds += seconds
            for name, taken in nodes:
                self._node_seconds[name] += taken
                self._node_runs[name] += 1

    def refused(self) -> None:
        with self._lock:
            self._refused += 1

    def text(self, waiting: int, running: int, clients: int, model_bytes: int) -> str:
        with self._lock:
            runs = {f'status="{state}"': count for state, count in self._runs.items()}
            seconds = {_label(name): round(taken, 6) for name, taken in self._node_seconds.items()}
            counts = {_label(name): count for name, count in self._node_runs.items()}
            run_seconds, refused = round(self._run_seconds, 6), self._refused
        parts = [
            _metric("uniworld_queue_length", "gauge", "Prompts that wait.", {"": waiting}),
            _metric("uniworld_running", "gauge", "Prompts that run.", {"": running}),
            _metric("uniworld_clients", "gauge", "Open sockets.", {"": clients}),
            _metric("uniworld_runs_total", "counter", "Prompts that ended.", runs),
            _metric("uniworld_run_seconds_total", "counter", "Seconds that prompts ran.", {"": run_seconds}),
            _metric("uniworld_refused_total", "counter", "Prompts that were refused.", {"": refused}),
            _metric("uniworld_node_seconds_total", "counter", "Seconds that nodes ran, by class.", seconds),
            _metric("uniworld_node_runs_total", "counter", "Nodes that ran, by class.", counts),
            _metric("uniworld_model_bytes", "gauge", "Weights on compute devices.", {"": model_bytes}),
            _metric("process_resident_memory_bytes", "gauge", "Memory of the server.", {"": process_bytes()}),
            _metric("process_start_time_seconds", "gauge", "When the server started.", {"": round(self._began, 3)}),
        ]
        return "".join(parts)


def _metric(name: str, kind: str, text: str, values: Mapping[str, float]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"


def _label(node_class: str) -> str:
    escaped = node_class.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'class="{escaped}"'
