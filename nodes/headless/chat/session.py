"""A conversation with the model: each message is answered by a picture or a text, and saved with its reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....uniworld_core.backbones.qwen_vl import MAX_NEW_TOKENS
from ....uniworld_core.errors import UniWorldError, shown
from ... import host
from ...pack.loaders import LoadUniWorld
from ...pack.understanding import ChooseRoute, Understand
from ..storage.pictures import load_picture
from .history import ASSISTANT, USER, History, SavedTurn
from .lines import ChatMessage
from .painting import PaintSettings, paint_prompt, steps_of

if TYPE_CHECKING:
    from PIL import Image

    from ....uniworld_core import Conversation, Reference

# The context of a message: all turns, as in the published program, or only the latest picture.
MEMORIES = ("conversation", "picture")
_STEM = "painted"
# What to do if the model has no routing head.
CHOOSE = "begin the message with /paint or /ask"


@dataclass(frozen=True)
class Settings(PaintSettings):
    """Settings of the replies: of pictures, and of answers.

    Attributes:
        memory: one of `MEMORIES`.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    memory: str = MEMORIES[0]


@dataclass(frozen=True)
class Reply:
    """The reply to a message.

    Attributes:
        paint: whether the reply is a picture rather than a text.
        probability: probability of painting by the routing head; None if the user decided.
        text: the answer, or "".
        pictures: files of the painted pictures.
    """

    paint: bool
    probability: float | None
    text: str
    pictures: tuple[Path, ...]


class TurnFailed(Exception):
    """The model could not reply; the message says why. The conversation is unchanged."""


class Session:
    """A model with one conversation.

    Attributes:
        attached: pictures for the next message.
    """

    def __init__(self, model: dict[str, Any], history: History, settings: Settings) -> None:
        self.history, self.settings, self.attached = history, settings, list[Path]()
        self._model = model
        self._references: dict[Path, Reference] = {}

    def say(self, message: ChatMessage, on_route: Callable[[bool, float | None], None] | None = None) -> Reply:
        """Paint or answer, and save the message and the reply.

        Args:
            on_route: called with the decision before it is carried out: whether to paint, and the head's probability.

        Raises:
            UniWorldError: the message or one of its pictures is invalid.
            TurnFailed: the model could not reply.
            host.Interrupted: the user interrupted the reply.
        """
        pictures = [open_picture(path) for path in message.pictures]
        self._check(message)
        try:
            return self._reply(message, pictures, on_route)
        except OSError as error:
            raise TurnFailed(
                f"The reply cannot be saved in '{self.history.folder}': {error.strerror or error}."
            ) from error
        except UniWorldError as error:
            raise TurnFailed(str(error)) from error

    def reset(self) -> None:
        """Start a new conversation. The current one stays saved."""
        old = self.history
        old.close()
        self.history = History(old.root, None, old.model)
        self.attached.clear()

    def _check(self, message: ChatMessage) -> None:
        from ....uniworld_core import Conversation, Turn

        Conversation([Turn(USER, message.text)])

    def _reply(
        self, message: ChatMessage, pictures: list[Image.Image], on_route: Callable[[bool, float | None], None] | None
    ) -> Reply:
        from ....uniworld_core import Conversation, Turn

        settings, history = self.settings, self.history
        own = self._encode(pictures)
        earlier, references = self._remembered(own)
        prompt: dict[str, Any] = {
            "vlm": self._model["vlm"],
            "prompt": message.text,
            "references": references,
            "conversation": earlier,
        }
        paint, probability = message.paint, None
        if paint is None:
            paint, probability = self._route(prompt)
        if on_route is not None:
            on_route(paint, probability)
        text, painted = "", []
        if paint:
            painted = paint_prompt(self._model, prompt, own or self._latest(), settings)
        else:
            limits: dict[str, Any] = {
                "max_new_tokens": settings.max_new_tokens,
                "temperature": 0.0,
                "seed": settings.seed,
            }
            text = Understand().execute(**prompt, **limits)[0]
            if not text.strip():
                raise UniWorldError("The model's answer is empty. Rephrase the message.")
            # Raises if the answer is invalid as a turn: it is not saved, since later turns could not be encoded with it.
            Conversation([Turn(USER, message.text), Turn(ASSISTANT, text)])
        names = history.new_names([*(path.stem for path in message.pictures), *[_STEM] * len(painted)])
        said, shown = tuple(names[: len(pictures)]), tuple(names[len(pictures) :])
        made: dict[str, Any] = {"probability": probability}
        if paint:
            made |= {"seed": settings.seed, "steps": steps_of(self._model, settings)}
            made |= {"loras": list(settings.loras)} if settings.loras else {}
        history.add(
            SavedTurn(USER, message.text, said),
            SavedTurn(ASSISTANT, text, shown, made),
            dict(zip(names, [*pictures, *painted])),
        )
        self.attached.clear()
        return Reply(paint, probability, text, tuple(history.picture(name) for name in shown))

    def _route(self, prompt: dict[str, Any]) -> tuple[bool, float | None]:
        """Decide whether to paint. Models that only paint always do."""
        family = self._model["vlm"].family
        if family.routes:
            paint, probability, *_ = ChooseRoute().execute(**prompt)
            return paint, probability
        if family.answers:
            raise UniWorldError(f"{family.name} does not decide between painting and answering: {CHOOSE}.")
        return True, None

    def _remembered(self, own: list[Reference]) -> tuple[Conversation | None, list[Reference]]:
        """Return the earlier turns that the model reads, and the references of the message."""
        from ....uniworld_core import Conversation, Turn

        if self.settings.memory == "picture":
            return None, own or self._latest()
        turns = [Turn(turn.role, turn.text, self._saved(turn)) for turn in self.history.turns]
        return (Conversation(turns) if turns else None), own

    def _latest(self) -> list[Reference]:
        """Return the latest pictures: "it" refers to them, and the next picture gets their aspect ratio."""
        return next((self._saved(turn) for turn in reversed(self.history.turns) if turn.pictures), [])

    def _saved(self, turn: SavedTurn) -> list[Reference]:
        paths = [self.history.picture(name) for name in turn.pictures]
        new = [path for path in paths if path not in self._references]
        self._references.update(zip(new, self._encode([open_picture(path) for path in new])))
        return [self._references[path] for path in paths]

    def _encode(self, pictures: list[Image.Image]) -> list[Reference]:
        from ....uniworld_core.prompts.reference import make_references

        siglip = self._model["siglip"]
        return make_references(pictures, siglip.on_device() if pictures and siglip.available else None)


def open_model(
    checkpoint: str,
    flux: str,
    siglip: str,
    dtype: str,
    device: str,
    storage: str = "auto",
    offload: str = "auto",
    compile: str = "off",
    attention: str = "auto",
) -> dict[str, Any]:
    """Open the parts of a model, by the names of Load UniWorld's outputs. Weights are read when first used.

    Raises:
        UniWorldError: the model does not exist, or its files do not match.
    """
    loaded = LoadUniWorld().execute(checkpoint, flux, siglip, dtype, device, storage, offload, compile, attention)
    return dict(zip(LoadUniWorld.RETURN_NAMES, loaded))


def open_picture(path: Path) -> Image.Image:
    """Return the first frame of a picture file, upright and on white. Raises UniWorldError if it cannot be read."""
    from ....uniworld_core.images.pictures import on_white, to_rgb

    loaded = load_picture(path, host.current().check_interrupt)
    if loaded.warning:
        host.current().warn(loaded.warning)
    return to_rgb(on_white(loaded.image[:1], loaded.mask[:1]))


def with_seed(settings: Settings, text: str) -> Settings:
    """Return the settings with another seed. Raises UniWorldError if the text is not a valid seed."""
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**64:
        raise UniWorldError(f"The seed is {shown(text)}; it must be an integer from 0 to 2**64 - 1.")
    return replace(settings, seed=seed)
