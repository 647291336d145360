"""Server metrics in Prometheus' text format.

The format is simple enough to be written directly: prometheus_client would add a dependency and a process-wide registry.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping

from .machine import process_bytes

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters since the server started. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._runs: dict[str, int] = dict.fromkeys(("success", "error", "interrupted"), 0)
        self._run_seconds = 0.0
        self._node_seconds: dict[str, float] = defaultdict(float)
        self._node_runs: dict[str, int] = defaultdict(int)
        self._rejected = 0

    def count_run(self, state: str, seconds: float, nodes: list[tuple[str, float]]) -> None:
        """Count a finished run, with the class and the seconds of each node that ran."""
        with self._lock:
            self._runs[state] += 1
            self._run_seconds += seconds
            for name, taken in nodes:
                self._node_seconds[name] += taken
                self._node_runs[name] += 1

    def count_rejected(self) -> None:
        with self._lock:
            self._rejected += 1

    def text(self, waiting: int, running: int, clients: int, model_bytes: int) -> str:
        with self._lock:
            runs = {f'status="{state}"': count for state, count in self._runs.items()}
            seconds = {_label(name): round(taken, 6) for name, taken in self._node_seconds.items()}
            counts = {_label(name): count for name, count in self._node_runs.items()}
            run_seconds, rejected = round(self._run_seconds, 6), self._rejected
        started = round(self._started, 3)
        parts = [
            _metric("uniworld_queue_length", "gauge", "Waiting prompts.", {"": waiting}),
            _metric("uniworld_running", "gauge", "Running prompts.", {"": running}),
            _metric("uniworld_clients", "gauge", "Open WebSockets.", {"": clients}),
            _metric("uniworld_runs_total", "counter", "Finished prompts by status.", runs),
            _metric("uniworld_run_seconds_total", "counter", "Run time of prompts in seconds.", {"": run_seconds}),
            _metric("uniworld_refused_total", "counter", "Rejected prompts.", {"": rejected}),
            _metric("uniworld_node_seconds_total", "counter", "Run time of nodes in seconds, by class.", seconds),
            _metric("uniworld_node_runs_total", "counter", "Executed nodes by class.", counts),
            _metric("uniworld_model_bytes", "gauge", "Weights on compute devices in bytes.", {"": model_bytes}),
            _metric("process_resident_memory_bytes", "gauge", "System RAM of the server.", {"": process_bytes()}),
            _metric("process_start_time_seconds", "gauge", "Start time of the server (Unix time).", {"": started}),
        ]
        return "".join(parts)


def _metric(name: str, kind: str, text: str, values: Mapping[str, float]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"


def _label(node_class: str) -> str:
    escaped = node_class.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'class="{escaped}"'
