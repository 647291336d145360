"""The command `uniworld run`: one workflow, in this process or on a server."""

from __future__ import annotations

import argparse
import contextlib
import sys

from ....command_line import DONE, FAILED, MISUSED
from ....streams import say
from ....uniworld_core.errors import UniWorldError
from ..check.validate import WorkflowRefused
from ..run.report import RunReport, never_failing
from ..run.stopping import stop_on_interrupt
from ..storage.output_folder import open_output, preview_folder
from ..workflow.file import find_workflow, list_shipped, read_workflow
from ..workflow.shipped import missing_model
from .place import open_workflow_place
from .values import apply_values


def run_workflow(arguments: argparse.Namespace) -> int:
    """Run `uniworld run` and return its exit code. Raises UniWorldError if the workflow or an option cannot be used."""
    if arguments.workflow is None:
        raise UniWorldError(f"Name a workflow to run. Shipped workflows: {list_shipped()}.")
    # Output that nodes print must not mix with the lines of --json.
    out = sys.stdout
    quiet = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with quiet, preview_folder() as previews, open_workflow_place(arguments, previews) as place:
        registry = place.registry
        file = find_workflow(arguments.workflow)
        workflow = read_workflow(file, registry)
        notes = apply_values(workflow, registry, arguments)
        report = arguments.report if arguments.json else RunReport(out, workflow.prompt)
        checked = place.check(workflow.prompt)
        for note in notes + checked.notes:
            report.note(note)
        if checked.problems:
            if not arguments.server and (missing := missing_model(file)):
                report.note(missing)
            report.invalid(checked)
            return MISUSED
        try:
            with open_output(arguments.output), stop_on_interrupt(place.host) as stop, report:
                result = place.run(workflow, checked, stop, never_failing(report.event))
        except WorkflowRefused as refusal:
            report.invalid(refusal.checked)
            return MISUSED
        never_failing(report.result)(result)
        if result.sentence:
            say(result.sentence)
        if arguments.debug and result.error is not None:
            inputs = ", ".join(f"{name}={value}" for name, value in result.error["current_inputs"].items())
            say(f"{''.join(result.error['traceback'])}Inputs of the node: {inputs or 'none'}.")
    return DONE if result.status == "success" else FAILED
