"""Run the rows of a batch one after the other in this process; models and cached results are kept between rows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ....uniworld_core.errors import UniWorldError, shown
from ....uniworld_core.files import sha256_file
from ...host import PlainHost
from ..check.validate import validate_prompt
from ..registry.registry import Registry
from ..run.executor import EventHook, Executor, RunResult
from ..run.report import files_of
from ..run.stopping import StopRequest
from ..storage import folders
from ..workflow.file import Workflow, find_node
from .results import DONE, ERROR, INTERRUPTED, Outcome
from .rows import BatchRow, apply_row


@dataclass
class RowFolders(folders.Folders):
    """Folders of one row: it reads from the shared folders and saves to its own."""

    saved: Path = Path()

    def new_picture(
        self, kind: str, prefix: str, lookup: Callable[[str], str | None] = lambda _: None, **sizes: int
    ) -> folders.NewPicture:
        own = folders.Folders(self.input, self.saved, self.temp)
        return own.new_picture(kind, prefix, lookup, **sizes)


class BatchWorker:
    """Runs rows of one workflow.

    Args:
        common: the folders that rows read from.
        stop: a request to stop the current row and all later ones.
    """

    def __init__(
        self, workflow: Workflow, registry: Registry, host: PlainHost, common: folders.Folders, stop: StopRequest
    ) -> None:
        self._workflow, self._registry, self._common, self._stop = workflow, registry, common, stop
        self._executor = Executor(registry, host)

    def run(
        self, row: BatchRow, pictures: Path, folder: Path, on_event: EventHook = lambda _name, _data: None
    ) -> Outcome:
        """Run a row.

        Args:
            pictures: the folder that the row's picture paths are relative to.
            folder: an empty folder for the files it saves.
            on_event: as for `Executor.run`.

        Returns:
            The outputs, or the reason for the failure. An exception raised by a node is reported here, not raised.
        """
        start = time.monotonic()
        # Previews are deleted with the row.
        temp = folder.parent / f"{folder.name}.temp"
        try:
            with folders.use(RowFolders(self._common.input, self._common.output, temp, saved=folder)):
                result = self._run(row, pictures, folder, on_event)
        except (UniWorldError, OSError) as error:  # such as a picture deleted since the rows were checked
            return Outcome(ERROR, error=str(error), seconds=_elapsed(start))
        finally:
            shutil.rmtree(temp, ignore_errors=True)
        if result.status != "success":
            status = INTERRUPTED if result.status == "interrupted" else ERROR
            return Outcome(status, error=result.sentence, seconds=_elapsed(start), warnings=result.warnings)
        return Outcome(DONE, *saved_and_texts(result), seconds=_elapsed(start), warnings=result.warnings)

    def _run(self, row: BatchRow, pictures: Path, folder: Path, on_event: EventHook) -> RunResult:
        workflow = apply_row(self._workflow, row, pictures, self._registry)
        checked = validate_prompt(workflow.prompt, self._registry)
        if checked.problems:
            raise UniWorldError(" ".join(checked.sentences))
        # The cache must not serve an output node from an identical row, whose files are in that row's folder, nor an
        # input picture from a row that used another file of the same name.
        salts = dict.fromkeys(checked.outputs, str(folder))
        for node, file in row.image.items():
            digest = sha256_file(pictures / folders.expand_path(file))
            node_id = find_node(workflow.prompt, node)
            salts[node_id] = f"{salts.get(node_id, '')} {digest}"
        return self._executor.run(
            checked.prompt,
            checked.outputs,
            original=workflow.prompt,
            prompt_id=row.id,
            extra_pnginfo=workflow.extra_pnginfo,
            salts=salts,
            stop=self._stop,
            on_event=on_event,
        )


def _elapsed(start: float) -> float:
    return round(time.monotonic() - start, 3)


def saved_and_texts(result: RunResult) -> tuple[list[str], list[str]]:
    """Return the saved files of a run, as paths relative to the row's folder, and its texts."""
    saved = [entry for ui in result.ui.values() for entry in files_of(ui) if entry["type"] == "output"]
    pictures = [(Path(entry.get("subfolder", "")) / entry["filename"]).as_posix() for entry in saved]
    texts = [text if isinstance(text, str) else shown(text) for ui in result.ui.values() for text in ui.get("text", ())]
    return pictures, texts
