"""Qwen2.5-VL's stand-in.

It learns to answer questions, to describe pictures, and to say what an instruction would produce. For each picture token
it also predicts which object is there, and whether the prompt refers to it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ....uniworld_core.backbones.qwen_template import chat_text
from ....uniworld_core.backbones.rope import rope_positions
from ..tasks.questions import DESCRIBE, listing
from ..tasks.split import draw_triple
from ..tasks.tasks import PAINTED_KINDS, ShapesTask, any_kind, make_task
from ..world.draw import draw, labels
from ..world.scene import COLORS, SHAPES, SIZES, Object, Scene, random_scene
from .fit import Objective, fast_math
from .parts import SIDE, VLM_MERGE, VLM_PATCH, VLM_WIDTH, make_qwen
from .vision import batch_vision_attention

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# CLIP's mean and standard deviation, as in Qwen2.5-VL's preprocessor_config.json.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
QUESTION_SHARE, CAPTION_SHARE = 0.55, 0.15  # the rest are instructions
FULL_OUTCOME_SHARE = 0.25  # outcomes that list the complete picture, which is slow
END = "<|im_end|>"
_IGNORED = -100
_GRID = SIDE // VLM_PATCH
_TOKENS = (_GRID // VLM_MERGE) ** 2  # of a picture
_CELL = VLM_PATCH * VLM_MERGE  # side in pixels of a picture token
_MIN_CELL_PIXELS = 12  # a token shows an object with more pixels than this
_CELLS = 1 + len(COLORS) * len(SHAPES) * len(SIZES)


@dataclass(frozen=True)
class VLMExample:
    """A prompt with its pictures, the correct answer and, if there is one, the object that the prompt refers to."""

    prompt: str
    scenes: tuple[Scene, ...]
    answer: str
    subject: Object | None = None


def draw_example(rng: np.random.Generator) -> VLMExample:
    """Draw an example of the training split: a question, a description or an instruction."""
    share = rng.random()
    if share < QUESTION_SHARE:
        task = make_task("question", rng, "train")
        return VLMExample(task.prompt, task.before, str(task.answer), task.subject)
    if share < QUESTION_SHARE + CAPTION_SHARE:
        scene = random_scene(rng, int(rng.integers(1, 5)), lambda source: draw_triple(source, "train"))
        wording = DESCRIBE[int(rng.integers(len(DESCRIBE)))]
        return VLMExample(wording, (scene,), listing(scene))
    task = make_task(any_kind(rng, PAINTED_KINDS), rng, "train")
    return VLMExample(task.prompt, task.before, outcome(task, rng), task.subject)


def outcome(task: ShapesTask, rng: np.random.Generator) -> str:
    """Describe what a task would paint; this needs both the instruction and the pictures."""
    changed = task.result or task.subject
    whole = changed is None or rng.random() < FULL_OUTCOME_SHARE
    words = [] if changed is None else [f"{changed.size} {changed.color} {changed.shape} {changed.place}"]
    if task.after is None:
        words.insert(0, task.detail or task.kind)
    if whole:
        words.append(listing(task.after or task.before[0]))
    return ": ".join(words)


@dataclass(frozen=True)
class VLMBatch:
    """A batch of examples, as inputs of the VLM.

    Attributes:
        ids, mask, labels: (B, L), padded on the right; only answers have labels.
        positions: (3, B, L).
        patches: patches of all pictures, or None.
        grids: (pictures, 3).
        cells: (pictures · tokens,) class of each picture token: see `token_class`.
        pointed: (pictures · tokens,) 1.0 if a picture token shows the object that the prompt refers to, 0.0 if not, and
            NaN if the prompt does not refer to a single object.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    positions: Tensor
    patches: Tensor | None
    grids: Tensor
    cells: Tensor
    pointed: Tensor


@dataclass(frozen=True)
class VLMExamples:
    """Draws batches of examples."""

    tokenizer: PreTrainedTokenizerBase
    image_token: int
    batch: int

    def __call__(self, rng: np.random.Generator) -> VLMBatch:
        return self.collate([draw_example(rng) for _ in range(self.batch)])

    def collate(self, examples: Sequence[VLMExample]) -> VLMBatch:
        """Collate examples into a batch."""
        rows = []
        for one in examples:
            asked = self.tokenizer(chat_text(one.prompt, [_TOKENS] * len(one.scenes)))["input_ids"]
            rows.append((asked, self.tokenizer(f"{one.answer}{END}")["input_ids"]))
        lengths = torch.tensor([len(asked) + len(answered) for asked, answered in rows])
        ids = torch.full((len(rows), int(lengths.max())), self.tokenizer.pad_token_id)
        labels = torch.full_like(ids, _IGNORED)
        for i, (asked, answered) in enumerate(rows):
            ids[i, : lengths[i]] = torch.tensor([*asked, *answered])
            labels[i, len(asked) : lengths[i]] = torch.tensor(answered)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        scenes = [scene for one in examples for scene in one.scenes]
        grids = torch.tensor([[1, _GRID, _GRID]] * len(scenes)).reshape(-1, 3)
        positions = rope_positions(ids, mask, grids if scenes else None, self.image_token, VLM_MERGE)
        shown = patches([draw(scene) for scene in scenes]) if scenes else None
        seen = [(one.subject, thing) for one in examples for scene in one.scenes for thing in objects_per_token(scene)]
        cells = torch.tensor([token_class(thing) for _, thing in seen], dtype=torch.long)
        pointed = torch.tensor([math.nan if subject is None else float(thing == subject) for subject, thing in seen])
        return VLMBatch(ids, mask, labels, positions, shown, grids, cells, pointed)


class VLMObjective(Objective):
    """Three cross-entropy losses: answers, vision tokens, and the language model's states of picture tokens.

    The vision tokens predict the object they show, in place of the contrastive training of Qwen2.5-VL's vision tower
    (arXiv 2502.13923, section 2.2.1); without it the language model learns from text only for a long time. The last hidden
    states of picture tokens predict the same, and whether the prompt refers to it, in place of Qwen2.5-VL's grounding
    (section 2.2.2) and of a loss at every token: answers alone do not train the last layer's states of prompt and
    pictures, which the DiT reads.

    Args:
        tokenizer: tokenizer of Qwen's stand-in.
        tokens: token ids of the configuration, from `qwen_ids`.
        batch: batch size.
        device: device to train on.
    """

    ends = ("embed", "lm_head", "to_cell", "to_place")

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokens: dict[str, int], batch: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.qwen = make_qwen(tokens["vocab_size"], tokens)
        batch_vision_attention(self.qwen.model.visual, _GRID * _GRID)
        self.to_cell = nn.Linear(VLM_WIDTH, _CELLS)
        self.to_place = nn.Linear(VLM_WIDTH, _CELLS + 1)
        self.source, self.device = VLMExamples(tokenizer, tokens["image_token_id"], batch), device
        self.to(device)

    def loss(self, drawn: VLMBatch) -> tuple[Tensor, dict[str, Tensor]]:
        expected = drawn.labels[:, 1:].to(self.device)
        labelled = expected != _IGNORED
        with fast_math(self.device), self._seen() as seen:
            states = self.qwen.model(
                input_ids=drawn.ids.to(self.device),
                attention_mask=drawn.mask.long().to(self.device),
                position_ids=drawn.positions.to(self.device),
                pixel_values=None if drawn.patches is None else drawn.patches.to(self.device),
                image_grid_thw=None if drawn.patches is None else drawn.grids.to(self.device),
                use_cache=False,
            ).last_hidden_state
            logits = self.qwen.lm_head(states[:, :-1][labelled])
            cells = [self.to_cell(tokens) for tokens in seen]
            places = self.to_place(states[drawn.ids.to(self.device) == self.qwen.config.image_token_id]).float()
        wanted = expected[labelled]
        answer = _mean_of_answers(functional.cross_entropy(logits.float(), wanted, reduction="none"), labelled)
        right = {"tokens right": _share(logits, wanted)}
        if not cells:
            return answer, right
        shown = drawn.cells.to(self.device)
        vision = functional.cross_entropy(cells[0].float(), shown)
        there = functional.cross_entropy(places[:, 1:], shown)
        pointed = drawn.pointed.to(self.device)
        known = ~pointed.isnan()
        count, at = known.sum().clamp(min=1), places[known, 0]  # a batch may have none
        point = functional.binary_cross_entropy_with_logits(at, pointed[known], reduction="sum") / count
        right |= {"cells right": _share(cells[0], shown), "there right": _share(places[:, 1:], shown)}
        right["pointed right"] = ((at > 0) == pointed[known].bool()).sum() / count
        return answer + vision + there + point, right

    @contextlib.contextmanager
    def _seen(self) -> Iterator[list[Tensor]]:
        """Collect the vision tower's output (pictures · tokens, D), row by row.

        A window contains a complete picture, so tokens leave the merger in order.
        """
        seen: list[Tensor] = []
        handle = self.qwen.model.visual.merger.register_forward_hook(lambda *call: seen.append(call[2]))
        try:
            yield seen
        finally:
            handle.remove()


def _mean_of_answers(loss_N: Tensor, labelled_BL: Tensor) -> Tensor:
    """Return the mean over answers, weighted by the square root of their lengths.

    With a plain mean over tokens, long descriptions would leave one-word answers only a tenth of the loss.
    """
    weight_BL = labelled_BL / labelled_BL.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
    weight_N = weight_BL[labelled_BL]
    return (loss_N * weight_N).sum() / weight_N.sum()


def objects_per_token(scene: Scene) -> list[Object | None]:
    """Return the object that fills most of each picture token, row by row; None for background only."""
    labels_HW = labels(scene)
    found: list[Object | None] = []
    for row in range(0, SIDE, _CELL):
        for column in range(0, SIDE, _CELL):
            counts = np.bincount(labels_HW[row : row + _CELL, column : column + _CELL].clip(0).ravel())
            counts[0] = _MIN_CELL_PIXELS
            found.append(scene.objects[int(counts.argmax()) - 1] if counts.argmax() else None)
    return found


def token_class(thing: Object | None) -> int:
    """Return the class of a picture token: 0 for the background, otherwise a number for color, shape and size."""
    if thing is None:
        return 0
    color, shape = list(COLORS).index(thing.color), SHAPES.index(thing.shape)
    return 1 + (color * len(SHAPES) + shape) * len(SIZES) + list(SIZES).index(thing.size)


def _share(logits: Tensor, wanted: Tensor) -> Tensor:
    return (logits.argmax(dim=-1) == wanted).float().mean()


def patches(pictures: Sequence[Image.Image]) -> Tensor:
    """Split pictures of the world's size into patches like Qwen2.5-VL's processor, but batched.

    Returns:
        float32 (pictures · patches, 3 · 2 · patch²): patches that are merged are adjacent, and the frame is repeated.
    """
    x = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, 1).float() / 255.0
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    b, merged = len(x), _GRID // VLM_MERGE
    x = x.reshape(b, 3, merged, VLM_MERGE, VLM_PATCH, merged, VLM_MERGE, VLM_PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # rows, columns, row and column within, channel, frame, pixels
    return x.expand(*x.shape[:6], 2, *x.shape[7:]).reshape(b * _GRID * _GRID, -1)


def preprocessor_config() -> dict[str, object]:
    """Return `preprocessor_config.json`; both limits equal the world's picture size, so every picture is resized to it."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": list(STD),
        "max_pixels": SIDE * SIDE,
        "merge_size": VLM_MERGE,
        "min_pixels": SIDE * SIDE,
        "patch_size": VLM_PATCH,
        "processor_class": "Qwen2_5_VLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": SIDE * SIDE, "shortest_edge": SIDE * SIDE},
        "temporal_patch_size": 2,
    }
