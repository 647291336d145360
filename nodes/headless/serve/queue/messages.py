"""What the sockets are told about a run: the executor's events as ComfyUI's messages, in ComfyUI's order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ....host import WARNING

if TYPE_CHECKING:
    from PIL import Image

_ENDS = ("execution_success", "execution_error", "execution_interrupted")
# The events that ComfyUI keeps in the history of a prompt.
_KEPT = ("execution_start", "execution_cached", *_ENDS)
# A message tells the states of the latest nodes; all of them each time would be far too much in a huge graph.
_MAX_STATES = 300


class Outlet(Protocol):
    def send(self, kind: str, data: dict[str, Any], client: str | None = None) -> None:
        """Send a message to one client, to all for None."""

    def send_text(self, client: str, node: str, text: str) -> None:
        """Send a text that the editor shows on a node to one client."""

    def send_preview(self, client: str, image: Image.Image, about: dict[str, object]) -> None:
        """Send a picture of what a node is making to one client."""


@dataclass
class RunMessages:
    """The messages of one run; `event` is the executor's hook. Its end is told by `tell_end`, once it is kept.

    Attributes:
        client: who posted the prompt and sees it run; None for nobody.
        kept: what the history keeps.
        node: the node that runs now, for a client that reconnects.
    """

    prompt_id: str
    client: str | None
    outlet: Outlet
    kept: list[list[Any]] = field(default_factory=list)
    node: str | None = None
    _states: dict[str, dict[str, object]] = field(default_factory=dict)
    _places: dict[str, dict[str, object]] = field(default_factory=dict)  # of nodes that other nodes added
    _untold: tuple[str, dict[str, object]] | None = None

    def event(self, name: str, data: dict[str, Any]) -> None:
        self.tell_end()  # a blocked node's error was not the end
        if name in _KEPT:
            self._whole_run(name, data)
        elif name == "executing":
            self._start(data)
        elif name == "progress":
            self._progress(data["node"], data["value"], data["max"])
        elif name == "preview" and self.client is not None:
            self.outlet.send_preview(self.client, data["image"], self._about(data["node"]))
        elif name == "warning" and self.client is not None:
            self._tell(WARNING, {"node": data["node"], "message": data["message"]})
            self.outlet.send_text(self.client, data["node"], data["message"])
        elif name == "executed":
            self._tell(name, {key: value for key, value in data.items() if key != "timestamp"})
            if data["node"] not in self._states:  # it comes from the cache
                self._finish(data["node"])
        elif name == "node_finished":
            self._finish(data["node"])

    def _whole_run(self, name: str, data: dict[str, object]) -> None:
        if name != "execution_start" and name != "execution_cached":
            self.node = None
        self.kept.append([name, data])
        if name in _ENDS:
            self._untold = (name, data)
        else:
            self._tell(name, data)

    def tell_end(self) -> None:
        """Tell how the run ended. Before it is kept nobody may know, as the server might die in between."""
        if self._untold is None:
            return
        (name, data), self._untold = self._untold, None
        if name == "execution_interrupted":
            self.outlet.send(name, data)  # ComfyUI tells everyone
        else:
            self._tell(name, data)

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
        self._tell_states()
        self._tell("executing", {"node": node, "display_node": self.node, "prompt_id": self.prompt_id})

    def _new_state(self, node: str, state: str, value: int) -> dict[str, object]:
        self._states.pop(node, None)  # a node that waited for a lazy input is among the latest again
        self._states[node] = {"value": value, "max": 1, "state": state, **self._about(node)}
        if len(self._states) > _MAX_STATES:
            del self._states[next(iter(self._states))]
        return self._states[node]

    def _progress(self, node: str, value: int, total: int) -> None:
        (self._states.get(node) or self._new_state(node, "running", 0)).update(value=value, max=total)
        self._tell("progress", {"value": value, "max": total, "prompt_id": self.prompt_id, "node": node})
        self._tell_states()

    def _finish(self, node: str) -> None:
        entry = self._states.get(node) or self._new_state(node, "cached", 1)
        if entry["state"] != "finished":
            entry.update(state="finished", value=entry["max"])
            self._tell_states()

    def _about(self, node: str) -> dict[str, object]:
        return {
            "node_id": node,
            "prompt_id": self.prompt_id,
            "display_node_id": node,
            "parent_node_id": None,
            "real_node_id": node,
            **self._places.get(node, {}),
        }

    def _tell_states(self) -> None:
        # A copy, as the message is written out later and elsewhere.
        nodes = {node: dict(state) for node, state in self._states.items()}
        self._tell("progress_state", {"prompt_id": self.prompt_id, "nodes": nodes})

    def _tell(self, name: str, data: dict[str, object]) -> None:
        if self.client is not None:
            self.outlet.send(name, data, self.client)
