"""`uniworld chat`: a conversation in a terminal, or through JSON lines with a program."""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ....command_line import DONE, FAILED, MISUSED, unexpected_error
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import write_atomic
from ....uniworld_core.lora.argument import read_lora_argument
from ... import host
from ...pack.folders import AUTO
from ...pack.lora import with_lora
from ..run.stopping import stop_on_interrupt
from ..storage import folders
from .history import History, latest
from .lines import COMMANDS, ChatCommand, ChatMessage, is_picture_name, parse_line
from .options import FOLDER, lora_file_of, memory_of, read_settings
from .painting import check_settings
from .report import ChatJson, ChatText, history_text
from .session import CHOOSE, Session, TurnFailed, open_model, open_picture, with_seed

if TYPE_CHECKING:
    from ....uniworld_core.families.family import Family

_PROMPT = "you> "
_MAX_LINE = 2**20  # characters

EPILOG = (
    "Name pictures in a message (photo.jpg Make it winter.) or attach them with /image; /help lists the commands. Without a "
    "terminal, each line of standard input is a message, and the first failure ends the chat. With --json the chat "
    'continues after a failure, and a line may be {"text": ..., "images": [...]}. Exit codes: 0 done, 1 a message failed or '
    "was interrupted, 2 bad usage or an invalid message."
)


def run(arguments: argparse.Namespace, out: TextIO, plain: host.PlainHost) -> int:
    """Chat until the input ends, and return the exit code.

    Args:
        out: the stream that replies are printed to.

    Raises:
        UniWorldError: an option is invalid, or the model or the saved conversation cannot be opened.
    """
    report = ChatJson(arguments.report) if arguments.json else ChatText(out)
    history = _open_history(arguments)
    try:
        settings, names = read_settings(arguments), history.model
        model = open_model(
            names["checkpoint"],
            names["flux"],
            names["siglip"],
            arguments.dtype,
            arguments.device,
            arguments.storage,
            arguments.offload,
            arguments.compile,
            arguments.attention,
        )
        for lora in map(read_lora_argument, arguments.lora):
            model = model | {"dit": with_lora(model["dit"], lora_file_of(lora.name), lora.strength)}
        settings = replace(settings, memory=memory_of(arguments.memory, model["vlm"]))
        check_settings(model, settings)
        plain.progress_hook, plain.warning_hook = report.progress, _once(report.warning)
        return Chat(Session(model, history, settings), model["vlm"].family, report, arguments, plain).run()
    finally:
        history.close()


class Chat:
    """The loop of a chat: reads lines, runs commands and messages, and reports the results."""

    def __init__(
        self,
        session: Session,
        family: Family,
        report: ChatText | ChatJson,
        arguments: argparse.Namespace,
        plain: host.PlainHost,
    ) -> None:
        self._session, self._family, self._report, self._plain = session, family, report, plain
        self._json, self._debug = bool(arguments.json), bool(arguments.debug)
        self._interactive = not self._json and sys.stdin.isatty() and sys.stdout.isatty()
        self._code = DONE

    def run(self) -> int:
        """Process lines until the input ends or the user quits, and return the exit code."""
        self._report.ready(self._session.history, self._notes())
        lines = _typed_lines(self._report.info) if self._interactive else _piped_lines(sys.stdin)
        status = "success"
        try:
            for line in lines:
                if not self._process(line):
                    break
        except KeyboardInterrupt:  # between messages, or the second Ctrl-C during one
            self._code = FAILED
            self._report.problem("Interrupted.")
        if self._code != DONE:
            status = "error"
        history = self._session.history
        self._report.end(status, history.folder if history.turns else None)
        return DONE if self._interactive else self._code

    def _notes(self) -> list[str]:
        names, memory = self._session.history.model, self._session.settings.memory
        notes = [f"Chat with {names['checkpoint']}. Name pictures in your messages; /help lists the commands."]
        if not self._family.answers:
            notes.append(f"{self._family.name} only paints: every message is painted.")
        elif not self._family.routes:
            notes.append(f"{self._family.name} does not decide between painting and answering: {CHOOSE}.")
        if memory == "picture":
            notes.append(
                "This model reads each message with the latest picture only, not with earlier turns"
                f"{' (change this with --memory conversation)' if self._family.many_turns else ''}: write complete "
                "instructions. /reset starts without a picture."
            )
        return notes if self._interactive or self._json else []

    def _process(self, line: str) -> bool:
        """Process one line. Returns False if the chat ends."""
        self._plain.interrupted.clear()
        try:
            parsed = parse_line(line, self._find, len(self._session.attached), objects=self._json)
            if isinstance(parsed, ChatCommand):
                return self._command(parsed)
            if parsed is not None:
                self._message(parsed)
            return True
        except UniWorldError as error:
            return self._failed(str(error), MISUSED)
        except TurnFailed as error:
            if self._debug:
                traceback.print_exc()
            return self._failed(str(error), FAILED)
        except host.Interrupted:
            return self._failed("Interrupted. The message is not part of the conversation.", FAILED)
        except OSError as error:
            place = error.filename or self._session.history.folder
            return self._failed(f"'{place}' cannot be used: {error.strerror or error}.", FAILED)
        except Exception as error:  # a bug or a full GPU must not end the session
            if self._debug:
                traceback.print_exc()
            return self._failed(unexpected_error(error, self._debug), FAILED)

    def _failed(self, sentence: str, code: int) -> bool:
        self._code = max(self._code, code)
        self._report.problem(sentence)
        return self._interactive or self._json

    def _message(self, message: ChatMessage) -> None:
        session = self._session
        pictures = (*session.attached, *message.pictures)
        if not message.text:
            for path in message.pictures:
                self._attach(path)
            return
        with stop_on_interrupt(self._plain, terminate=False):
            reply = session.say(ChatMessage(message.text, pictures, message.paint), self._report.route)
        self._report.reply(reply)

    def _command(self, command: ChatCommand) -> bool:
        session, info = self._session, self._report.info
        name, argument = command.name, command.argument
        if name == "/quit":
            return False
        if name == "/help":
            info("\n".join(f"{usage:<13}{text}" for usage, text in COMMANDS.items()))
        elif name == "/history":
            info(history_text(session.history))
        elif name == "/image":
            if not argument:
                raise UniWorldError("/image needs a file name, such as `/image photo.jpg`.")
            self._attach(self._find(argument))
        elif name == "/seed":
            session.settings = with_seed(session.settings, argument)
            info(f"The seed is now {session.settings.seed}.")
        elif name == "/undo":
            self._undo()
        elif name == "/reset":
            session.reset()
            info("Started a new conversation.")
        elif name == "/save":
            info(f"Saved to {self._save(argument)}.")
        return True

    def _attach(self, path: Path) -> None:
        open_picture(path)
        self._session.attached.append(path)
        self._report.info(f"Attached {path} to the next message.")

    def _undo(self) -> None:
        session = self._session
        if session.attached:
            self._report.info(f"Detached {session.attached.pop()}.")
            return
        removed = session.history.undo()
        self._report.info(f"Removed: {removed[0].text}" if removed else "There are no messages yet.")

    def _save(self, name: str) -> Path:
        history = self._session.history
        if not name:
            raise UniWorldError("/save needs a name: NAME.png saves the last painted picture, NAME the conversation.")
        target = folders.expand_path(name)
        if not is_picture_name(name):
            history.copy(target)
            return target
        painted = [picture for turn in history.turns[1::2] for picture in turn.pictures]
        if not painted:
            raise UniWorldError("There is no painted picture to save yet.")
        if target.suffix.lower() != ".png":
            raise UniWorldError(f"Pictures are saved as PNG: name it {target.with_suffix('.png')}.")
        if target.exists():
            raise UniWorldError(f"'{target}' already exists. Choose another name.")
        write_atomic(target, history.picture(painted[-1]).read_bytes())
        return target

    def _find(self, name: str) -> Path:
        """Return a picture by its path, or by its name in the conversation or the input folder."""
        path = folders.expand_path(name)
        for place in (path, self._session.history.folder / name):
            if folders.is_file(place):
                return place
        if path.is_absolute():
            raise UniWorldError(f"The picture file '{name}' does not exist. Check the path.")
        return folders.current().find_picture(name)


def _once(warn: Callable[[str], None]) -> Callable[[str], None]:
    """Wrap a function so that repeated warnings are dropped."""
    seen: set[str] = set()

    def once(sentence: str) -> None:
        if sentence not in seen:
            seen.add(sentence)
            warn(sentence)

    return once


def _open_history(arguments: argparse.Namespace) -> History:
    root = arguments.output / FOLDER
    given = {key: getattr(arguments, key) for key in ("checkpoint", "flux", "siglip") if getattr(arguments, key)}
    if arguments.name is not None and arguments.resume:
        raise UniWorldError(f"--resume selects the latest conversation: leave out --resume or '{arguments.name}'.")
    model = {"checkpoint": "nano", "flux": AUTO, "siglip": AUTO} | given
    history = History(root, latest(root) if arguments.resume else arguments.name, model)
    if history.turns and "checkpoint" not in given:
        history.model = model | history.model | given
    else:  # the saved FLUX and SigLIP folders may not match another checkpoint
        history.model = model
    return history


def _piped_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file or pipe. Raises UniWorldError if one is too long: a device may have no line breaks."""
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise UniWorldError(f"A message has more than {_MAX_LINE} characters. Pass one message per line.")
        yield line


def _typed_lines(info: Callable[[str], None]) -> Iterator[str]:
    """Yield typed lines until Ctrl-D. Ctrl-C discards the current line."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it enables line editing and history in `input`)
    while True:
        try:
            yield input(_PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            info("Press Ctrl-D or type /quit to leave.")
