"""Convert the executor's events of a run to ComfyUI's WebSocket messages, in ComfyUI's order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ....host import WARNING

if TYPE_CHECKING:
    from PIL import Image

_ENDS = ("execution_success", "execution_error", "execution_interrupted")
# The events that ComfyUI stores in the history of a prompt.
_KEPT = ("execution_start", "execution_cached", *_ENDS)
# A progress message contains the states of the latest nodes only: all states of a huge graph, sent after every step, would
# flood the socket.
_MAX_STATES = 300


class MessageSink(Protocol):
    def send(self, kind: str, data: dict[str, Any], client: str | None = None) -> None:
        """Send a message to one client, or to all if it is None."""

    def send_text(self, client: str, node: str, text: str) -> None:
        """Send one client a text that the editor shows on a node."""

    def send_preview(self, client: str, image: Image.Image, about: dict[str, object]) -> None:
        """Send one client a preview of a node's result."""


@dataclass
class RunMessages:
    """The messages of one run. `event` is the executor's callback; `send_end` sends the last message once it is stored.

    Attributes:
        client: id of the client that posted the prompt and receives its messages; None for no client.
        kept: the messages that are stored in the history.
        node: the running node, for a client that reconnects.
    """

    prompt_id: str
    client: str | None
    sink: MessageSink
    kept: list[list[Any]] = field(default_factory=list)
    node: str | None = None
    _states: dict[str, dict[str, object]] = field(default_factory=dict)
    _places: dict[str, dict[str, object]] = field(
        default_factory=dict
    )  # of nodes that other nodes created by expansion
    _unsent_end: tuple[str, dict[str, object]] | None = None

    def event(self, name: str, data: dict[str, Any]) -> None:
        self.send_end()  # more events follow: the held error was that of a blocked node, not the end of the run
        if name in _KEPT:
            self._run_event(name, data)
        elif name == "executing":
            self._start(data)
        elif name == "progress":
            self._progress(data["node"], data["value"], data["max"])
        elif name == "preview" and self.client is not None:
            self.sink.send_preview(self.client, data["image"], self._about(data["node"]))
        elif name == "warning" and self.client is not None:
            self._send(WARNING, {"node": data["node"], "message": data["message"]})
            self.sink.send_text(self.client, data["node"], data["message"])
        elif name == "executed":
            self._send(name, {key: value for key, value in data.items() if key != "timestamp"})
            if data["node"] not in self._states:  # the result comes from the cache
                self._finish(data["node"])
        elif name == "node_finished":
            self._finish(data["node"])

    def _run_event(self, name: str, data: dict[str, object]) -> None:
        if name != "execution_start" and name != "execution_cached":
            self.node = None
        self.kept.append([name, data])
        if name in _ENDS:
            self._unsent_end = (name, data)
        else:
            self._send(name, data)

    def send_end(self) -> None:
        """Send the message that ends the run. Called once the result is stored, in case the server dies in between."""
        if self._unsent_end is None:
            return
        (name, data), self._unsent_end = self._unsent_end, None
        if name == "execution_interrupted":
            self.sink.send(name, data)  # ComfyUI sends it to all clients
        else:
            self._send(name, data)

    def _start(self, data: dict[str, Any]) -> None:
        node = data["node"]
        if data["parent_node"] is not None:
            self._places[node] = {
                "display_node_id": data["display_node"],
                "parent_node_id": data["parent_node"],
                "real_node_id": data["real_node"],
            }
        self.node = data["display_node"]
        self._new_state(node, "running", 0)
        self._send_states()
        self._send("executing", {"node": node, "display_node": self.node, "prompt_id": self.prompt_id})

    def _new_state(self, node: str, state: str, value: int) -> dict[str, object]:
        self._states.pop(node, None)  # a node that resumes after a lazy input becomes the latest again
        self._states[node] = {"value": value, "max": 1, "state": state, **self._about(node)}
        if len(self._states) > _MAX_STATES:
            del self._states[next(iter(self._states))]
        return self._states[node]

    def _progress(self, node: str, value: int, total: int) -> None:
        (self._states.get(node) or self._new_state(node, "running", 0)).update(value=value, max=total)
        self._send("progress", {"value": value, "max": total, "prompt_id": self.prompt_id, "node": node})
        self._send_states()

    def _finish(self, node: str) -> None:
        entry = self._states.get(node) or self._new_state(node, "cached", 1)
        if entry["state"] != "finished":
            entry.update(state="finished", value=entry["max"])
            self._send_states()

    def _about(self, node: str) -> dict[str, object]:
        return {
            "node_id": node,
            "prompt_id": self.prompt_id,
            "display_node_id": node,
            "parent_node_id": None,
            "real_node_id": node,
            **self._places.get(node, {}),
        }

    def _send_states(self) -> None:
        # Copied, because the message is serialized later, in another thread.
        nodes = {node: dict(state) for node, state in self._states.items()}
        self._send("progress_state", {"prompt_id": self.prompt_id, "nodes": nodes})

    def _send(self, name: str, data: dict[str, object]) -> None:
        if self.client is not None:
            self.sink.send(name, data, self.client)
