"""The command `uniworld check`: check a workflow without running it, and write its API form."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from ....command_line import DONE, MISUSED
from ....uniworld_core.errors import UniWorldError
from ..check.validate import Validation, validate_prompt
from ..registry.registry import Registry
from ..storage.output_folder import check_writable
from ..workflow.api_form import check_target, is_stdout, non_finite_inputs, not_reported, write_api_form
from ..workflow.file import find_workflow, node_name, read_workflow
from .place import connect_servers, set_up
from .values import apply_values


def check_workflow(arguments: argparse.Namespace) -> int:
    """Run `uniworld check` and return its exit code. Raises UniWorldError if the workflow or an option cannot be used."""
    to_stdout = arguments.api is not None and is_stdout(arguments.api)
    if to_stdout and arguments.json:
        raise UniWorldError(f"--api {arguments.api} and --json both write to standard output. Pass --api a file name.")
    # Output that packs print must not mix with the API form.
    out = sys.stderr if to_stdout else sys.stdout
    registry: Registry
    check: Callable[[dict[str, Any]], Validation]
    with contextlib.ExitStack() as stack:
        if arguments.server is not None:
            servers = stack.enter_context(connect_servers(arguments, [arguments.server]))
            registry, check = servers.registry, servers.validate
        else:
            with contextlib.redirect_stdout(out):
                registry, _ = set_up(arguments)
            check = partial(validate_prompt, registry=registry)
        file = find_workflow(arguments.workflow)
        workflow = read_workflow(file, registry)
        if arguments.api is not None and workflow.replacements is not None:
            check_target(arguments.api, file)
        notes = apply_values(workflow, registry, arguments)
        checked = check(workflow.prompt)
    notes += checked.notes
    if arguments.json:
        for note in notes:
            arguments.report.note(note)
    problems = checked.sentences
    try:
        check_writable(arguments.output, make=False)
    except UniWorldError as error:
        problems.append(str(error))
    if arguments.api is not None:
        unwritable = non_finite_inputs(workflow.prompt)
        problems += not_reported(unwritable, problems)
        if unwritable:
            problems.append("The API form was not written.")
        else:
            write_api_form(workflow.prompt, arguments.api)
    if arguments.json and problems:
        arguments.report.invalid(checked, problems)
    elif arguments.json:
        arguments.report.line("valid", outputs=checked.outputs)
    else:
        outputs = ", ".join(f"{one} ({node_name(checked.prompt[one], registry)})" for one in checked.outputs)
        kind = "output nodes" if len(checked.outputs) > 1 else "output node"
        valid = f"The workflow is valid: {len(checked.prompt)} nodes; {kind}: {outputs}."
        print("\n".join([*(f"note: {note}" for note in notes), *(problems or [valid])]), file=out)
    return MISUSED if problems else DONE
