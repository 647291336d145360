"""A conversation with the model: each message is painted or answered, and saved with its reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....uniworld_core.backbones.qwen_vl import MAX_NEW_TOKENS
from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.families.uniworld_v1.painting import GUIDANCE, STEPS
from ....uniworld_core.images.sizes import DEFAULT_RATIOS
from ... import host
from ...pack.conditioning import EncodeCondition
from ...pack.loaders import LoadUniWorld
from ...pack.sampling import LatentByAspect, Sampler, Scheduler
from ...pack.understanding import ChooseRoute, Understand
from ...pack.vae import VAEDecode
from ..storage.pictures import load_picture
from .history import ASSISTANT, USER, History, SavedTurn
from .lines import ChatMessage

if TYPE_CHECKING:
    from PIL import Image

    from ....uniworld_core import Conversation, Reference

# What a prompt carries of the conversation: all turns, as the published program, or the latest picture alone.
MEMORIES = ("conversation", "picture")
_STEM = "painted"


@dataclass(frozen=True)
class Settings:
    """How messages are painted and answered.

    Attributes:
        area_side: side in pixels of a square of the area to paint; 0 takes the model's own.
        t5: let T5 and CLIP read the last instruction too.
        memory: one of `MEMORIES`.
    """

    seed: int = 0
    steps: int = STEPS
    guidance: float = GUIDANCE
    area_side: int = 0
    t5: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    memory: str = MEMORIES[0]


@dataclass(frozen=True)
class Reply:
    """What came of a message.

    Attributes:
        paint: True where it was painted, False where it was answered.
        probability: how sure the routing head is that a picture is asked for; None where the user decided.
        text: the answer, or "".
        pictures: files of the painted pictures.
    """

    paint: bool
    probability: float | None
    text: str
    pictures: tuple[Path, ...]


class TurnFailed(Exception):
    """The model could not reply; the sentence says why. The conversation is as it was."""


class Session:
    """One user, one model, and the conversation that they are in.

    Attributes:
        attached: pictures for the next message.
    """

    def __init__(self, model: dict[str, Any], history: History, settings: Settings) -> None:
        self.history, self.settings, self.attached = history, settings, list[Path]()
        self._model = model
        self._references: dict[Path, Reference] = {}

    def say(self, message: ChatMessage, on_route: Callable[[bool, float | None], None] | None = None) -> Reply:
        """Paint or answer, and save both turns.

        Args:
            on_route: called with what was decided before it is done: whether to paint, and how sure the head is.

        Raises:
            UniWorldError: the message cannot be read, or a picture of it.
            TurnFailed: the model could not reply.
            host.Interrupted: the user stopped it.
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
        """Begin a new conversation; the present one stays saved."""
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
            paint, probability, *_ = ChooseRoute().execute(**prompt)
        if on_route is not None:
            on_route(paint, probability)
        text, painted = "", []
        if paint:
            painted = self._paint(prompt, own or self._latest())
        else:
            limits: dict[str, Any] = {
                "max_new_tokens": settings.max_new_tokens,
                "temperature": 0.0,
                "seed": settings.seed,
            }
            text = Understand().execute(**prompt, **limits)[0]
            if not text.strip():
                raise UniWorldError("The model gave an empty answer: ask in other words.")
            # What the next turn could not read is not kept.
            Conversation([Turn(USER, message.text), Turn(ASSISTANT, text)])
        names = history.new_names([*(path.stem for path in message.pictures), *[_STEM] * len(painted)])
        said, shown = tuple(names[: len(pictures)]), tuple(names[len(pictures) :])
        made = {"probability": probability} | ({"seed": settings.seed, "steps": settings.steps} if paint else {})
        history.add(
            SavedTurn(USER, message.text, said),
            SavedTurn(ASSISTANT, text, shown, made),
            dict(zip(names, [*pictures, *painted])),
        )
        self.attached.clear()
        return Reply(paint, probability, text, tuple(history.picture(name) for name in shown))

    def _paint(self, prompt: dict[str, Any], like: list[Reference]) -> list[Image.Image]:
        from ....uniworld_core.images.pictures import to_rgb

        settings, dit = self.settings, self._model["dit"]
        text = self._model["text"] if settings.t5 else None
        conditioning = EncodeCondition().execute(**prompt, text=text)[0]
        square: dict[str, Any] = {
            "width": 1024,
            "height": 1024,
            "area_side": settings.area_side,
            "ratios": DEFAULT_RATIOS,
        }
        latent = LatentByAspect().execute(**square, batch_size=1, references=like, dit=dit)[0]
        (sigmas,) = Scheduler().execute(dit, latent, settings.steps, 1.0)
        (painted,) = Sampler().execute(
            dit, conditioning, latent, settings.seed, settings.steps, settings.guidance, 1.0, sigmas
        )
        host.current().check_interrupt()
        return [to_rgb(image) for image in VAEDecode().execute(self._model["vae"], painted)[0]]

    def _remembered(self, own: list[Reference]) -> tuple[Conversation | None, list[Reference]]:
        """The earlier turns that the model reads, and the references of the message."""
        from ....uniworld_core import Conversation, Turn

        if self.settings.memory == "picture":
            return None, own or self._latest()
        turns = [Turn(turn.role, turn.text, self._saved(turn)) for turn in self.history.turns]
        return (Conversation(turns) if turns else None), own

    def _latest(self) -> list[Reference]:
        """The pictures of the latest turn that has some: what "it" is, and whose size the next one has."""
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
    checkpoint: str, flux: str, siglip: str, dtype: str, device: str, storage: str = "auto"
) -> dict[str, Any]:
    """The parts of a model by the names of Load UniWorld's outputs; weights are read when first used.

    Raises:
        UniWorldError: there is no such model, or files of it do not fit.
    """
    return dict(
        zip(LoadUniWorld.RETURN_NAMES, LoadUniWorld().execute(checkpoint, flux, siglip, dtype, device, storage))
    )


def open_picture(path: Path) -> Image.Image:
    """The first frame of a picture file, upright and on white. Raises UniWorldError for one that cannot be read."""
    from ....uniworld_core.images.pictures import on_white, to_rgb

    loaded = load_picture(path, host.current().check_interrupt)
    if loaded.warning:
        host.current().warn(loaded.warning)
    return to_rgb(on_white(loaded.image[:1], loaded.mask[:1]))


def with_seed(settings: Settings, text: str) -> Settings:
    """The settings with another seed. Raises UniWorldError if the text is none."""
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**64:
        raise UniWorldError(f"The seed is {text!r}; it must be a whole number from 0 to 2**64 - 1.")
    return replace(settings, seed=seed)
