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
from ....uniworld_core.loading.options import ATTENTIONS, COMPILES, OFFLOADS, STORAGES
from ....uniworld_core.lora.argument import METAVAR, STRENGTH_HELP, read_lora_argument
from ....uniworld_core.sampling.cache import CACHES
from ....uniworld_core.sampling.solvers import SOLVERS
from ... import host
from ...pack.folders import AUTO
from ...pack.lora import lora_file, lora_names, with_lora
from ...pack.parts import DTYPES
from ..run.stopping import stop_on_interrupt
from ..storage import folders
from .history import History, latest
from .lines import COMMANDS, ChatCommand, ChatMessage, is_picture_name, parse_line
from .report import ChatJson, ChatText, history_text
from .session import MEMORIES, Session, Settings, TurnFailed, open_model, open_picture, with_seed

if TYPE_CHECKING:
    from ....uniworld_core.prompts.scope import Scope

FOLDER = "chat"  # in the output folder; contains a folder per conversation
_PROMPT = "you> "

EPILOG = (
    "Name pictures in a message (photo.jpg Make it winter.) or attach them with /image; /help lists the commands. Without a "
    "terminal, each line of standard input is a message, and the first failure ends the chat. With --json the chat "
    'continues after a failure, and a line may be {"text": ..., "images": [...]}. Exit codes: 0 done, 1 a message failed or '
    "was interrupted, 2 bad usage or an invalid message."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `uniworld chat`, except for those that all commands share."""
    add = parser.add_argument
    add("name", nargs="?", help="name of a new or saved conversation (default: a new one named by the time)")
    add("--resume", action="store_true", help="resume the latest conversation")
    add(
        "--checkpoint",
        metavar="NAME",
        help="a folder in MODELS/uniworld or MODELS/diffusers (default: nano, or that of the conversation)",
    )
    add("--flux", metavar="NAME", help="a folder in MODELS/diffusers (default: auto, which matches the checkpoint)")
    add("--siglip", metavar="NAME", help="a folder in MODELS/siglip (default: auto)")
    add(
        "--lora",
        action="append",
        default=[],
        metavar=METAVAR,
        help=f"a LoRA for the pictures, a file or a name in MODELS/loras; {STRENGTH_HELP}",
    )
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="compute dtype")
    add(
        "--storage",
        choices=STORAGES,
        default=STORAGES[0],
        help="how weights are stored in memory (default: as in the files)",
    )
    add(
        "--offload",
        choices=OFFLOADS,
        default=OFFLOADS[0],
        help="stream parts that do not fit the GPU block by block (default: if necessary)",
    )
    add(
        "--compile",
        choices=COMPILES,
        default=COMPILES[0],
        help=f"compile the DiT's blocks with torch.compile (default: {COMPILES[0]})",
    )
    add(
        "--attention",
        choices=ATTENTIONS,
        default=ATTENTIONS[0],
        help=f"implementation of attention in the DiT (default: {ATTENTIONS[0]})",
    )
    add("--device", default="default", help="device that the model runs on")
    add("--seed", type=int, default=0, help="seed of the pictures (default: 0; /seed changes it)")
    add("--steps", type=int, default=Settings.steps, help=f"sampling steps (default: {Settings.steps})")
    add("--guidance", type=float, help="guidance (default: that of the model's family, such as 3.5 for UniWorld-V1)")
    add(
        "--solver",
        choices=SOLVERS,
        default=Settings.solver,
        help=f"solver; dpm2 needs fewer steps (default: {Settings.solver})",
    )
    add(
        "--cache",
        choices=CACHES,
        default=Settings.cache,
        help=f"skip blocks that hardly change a step's result (default: {Settings.cache})",
    )
    add(
        "--area-side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="area of the pictures, as the side of a square (default: the model's)",
    )
    add("--t5", action="store_true", help="also encode the instruction with T5 and CLIP, as UniWorld-V1 can")
    add("--max-new-tokens", type=int, default=Settings.max_new_tokens, help="maximum length of an answer in tokens")
    add(
        "--memory",
        choices=MEMORIES,
        help="context of a message: the whole conversation, or only the latest picture (default: conversation; picture "
        "for models trained on single instructions, such as nano)",
    )
    add("--input", type=Path, default=Path("input"), metavar="DIR", help="also search for pictures here")
    add("--output", type=Path, default=Path("output"), metavar="DIR", help=f"conversations are saved in DIR/{FOLDER}")


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
        settings, names = _settings(arguments), history.model
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
            model = model | {"dit": with_lora(model["dit"], _lora_file(lora.name), lora.strength)}
        if arguments.memory is None:
            settings = replace(settings, memory=default_memory(model["vlm"].scope))
        plain.progress_hook, plain.warning_hook = report.progress, _once(report.warning)
        return Chat(Session(model, history, settings), report, arguments, plain).run()
    finally:
        history.close()


class Chat:
    """The loop of a chat: reads lines, runs commands and messages, and reports the results."""

    def __init__(
        self,
        session: Session,
        report: ChatText | ChatJson,
        arguments: argparse.Namespace,
        plain: host.PlainHost,
    ) -> None:
        self._session, self._report, self._plain = session, report, plain
        self._json, self._debug = bool(arguments.json), bool(arguments.debug)
        self._interactive = not self._json and sys.stdin.isatty() and sys.stdout.isatty()
        self._code = DONE

    def run(self) -> int:
        """Process lines until the input ends or the user quits, and return the exit code."""
        self._report.ready(self._session.history, self._notes())
        lines = _typed_lines(self._report.info) if self._interactive else sys.stdin
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
        if memory == "picture":
            notes.append(
                "This model reads each message with the latest picture only, not with earlier turns (change this with "
                "--memory conversation): write complete instructions. /reset starts without a picture."
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


def default_memory(scope: Scope | None) -> str:
    """Return the whole conversation, or only the picture for a model that was not trained on several turns."""
    return MEMORIES[0] if scope is None or scope.turns > 2 else MEMORIES[1]


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = Settings(
        steps=arguments.steps,
        guidance=arguments.guidance,
        solver=arguments.solver,
        cache=arguments.cache,
        area_side=arguments.area_side,
        t5=arguments.t5,
        max_new_tokens=arguments.max_new_tokens,
        memory=arguments.memory or MEMORIES[0],
        loras=tuple(arguments.lora),
    )
    for name in ("steps", "max_new_tokens"):
        if getattr(settings, name) < 1:
            raise UniWorldError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1.")
    if arguments.area_side and not 64 <= arguments.area_side <= 4096:
        raise UniWorldError(f"--area-side is {arguments.area_side}; it must be 64 to 4096, or 0 for the model's own.")
    if arguments.device not in host.current().devices():
        raise UniWorldError(
            f"--device is {arguments.device!r}; available devices: {', '.join(host.current().devices())}."
        )
    return with_seed(settings, str(arguments.seed))


def _lora_file(name: str) -> Path:
    """Return a LoRA by its path, or by its name in the models' folders. Raises UniWorldError if there is neither."""
    path, names = folders.expand_path(name), lora_names()
    if path.exists():
        return path
    if name not in names:
        raise UniWorldError(
            f"--lora is {name!r}, which is neither a file nor a name in models/loras ({', '.join(names) or 'which is empty'})."
        )
    return lora_file(name)


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
