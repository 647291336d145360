"""Qwen2.5-VL's stand-in: it learns to answer questions, to describe pictures, and to say what an instruction would make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ....uniworld_core.prompt import chat_text
from ....uniworld_core.rope import rope_positions
from ..draw import draw
from ..prompts import caption
from ..split import draw_triple
from ..tasks import KINDS, Task, any_kind, make_task
from ..world import random_scene
from .fit import fast_math
from .parts import SIDE, VLM_MERGE, VLM_PATCH, make_qwen

BATCH = 48
# CLIP's mean and deviation, as Qwen2.5-VL's preprocessor_config.json has them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
QUESTION_SHARE, CAPTION_SHARE = 0.6, 0.1  # the rest are instructions
SAID_WHOLE = 0.25  # how often the outcome of an instruction is said with all that is in the picture; it takes long
END = "<|im_end|>"
_IGNORED = -100
_GRID = SIDE // VLM_PATCH
_TOKENS = (_GRID // VLM_MERGE) ** 2  # of a picture
_INSTRUCTIONS = tuple(kind for kind in KINDS if kind != "question")
_DESCRIBE = ("Describe the picture.", "What is in the picture?", "Describe this image.")


@dataclass(frozen=True)
class Turn:
    """One prompt with its pictures, and the right answer."""

    prompt: str
    pictures: tuple[Image.Image, ...]
    answer: str


def turn(rng: np.random.Generator) -> Turn:
    """One turn of the training split: a question, a description or an instruction."""
    share = rng.random()
    if share < QUESTION_SHARE:
        task = make_task("question", rng, "train")
        return Turn(task.prompt, task.references, str(task.answer))
    if share < QUESTION_SHARE + CAPTION_SHARE:
        scene = random_scene(rng, int(rng.integers(1, 5)), lambda source: draw_triple(source, "train"))
        wording = _DESCRIBE[int(rng.integers(len(_DESCRIBE)))]
        return Turn(wording, (draw(scene),), caption(scene, rng))
    task = make_task(any_kind(rng, _INSTRUCTIONS), rng, "train")
    return Turn(task.prompt, task.references, outcome(task, rng))


def outcome(task: Task, rng: np.random.Generator) -> str:
    """What a task would paint, in words: whoever can say it has read both the instruction and the pictures."""
    changed = task.result or task.subject
    whole = changed is None or rng.random() < SAID_WHOLE
    words = [] if changed is None else [f"{changed.size} {changed.colour} {changed.shape} {changed.place}"]
    if task.after is None:
        words.insert(0, task.detail or task.kind)
    if whole:
        words.append(caption(task.after or task.before[0], rng))
    return ": ".join(words)


class Answering(nn.Module):
    """The training objective: the likelihood of the answer's tokens.

    Args:
        tokenizer: Qwen's stand-in.
        tokens: ids for the configuration, from `write_qwen_tokenizer`.
    """

    def __init__(self, tokenizer: Any, tokens: dict[str, int], device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.qwen: Any = make_qwen(tokens["vocab_size"], tokens).to(device)
        self.tokenizer, self.tokens, self.device = tokenizer, tokens, device

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        turns = [turn(rng) for _ in range(BATCH)]
        ids, mask, labels = self._tokenized(turns)
        shown = [picture for one in turns for picture in one.pictures]
        grids = torch.tensor([[1, _GRID, _GRID]] * len(shown))
        positions = rope_positions(ids, mask, grids if shown else None, self.tokens["image_token_id"], VLM_MERGE)
        with fast_math(self.device):
            states = self.qwen.model(
                input_ids=ids.to(self.device),
                attention_mask=mask.long().to(self.device),
                position_ids=positions.to(self.device),
                pixel_values=patches(shown).to(self.device) if shown else None,
                image_grid_thw=grids.to(self.device) if shown else None,
                use_cache=False,
            ).last_hidden_state
            told = (labels[:, 1:] != _IGNORED).to(self.device)
            logits = self.qwen.lm_head(states[:, :-1][told])
        wanted = labels[:, 1:].to(self.device)[told]
        right = (logits.argmax(dim=-1) == wanted).float().mean()
        return nn.functional.cross_entropy(logits.float(), wanted), {"tokens right": round(right.item(), 4)}

    def _tokenized(self, turns: Sequence[Turn]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and labels (B, L), padded on the right; only answers have labels."""
        rows = []
        for one in turns:
            asked = self.tokenizer(chat_text(one.prompt, [_TOKENS] * len(one.pictures)))["input_ids"]
            answered = self.tokenizer(f"{one.answer}{END}")["input_ids"]
            rows.append((asked, answered))
        length = max(len(asked) + len(answered) for asked, answered in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        labels = torch.full_like(ids, _IGNORED)
        for i, (asked, answered) in enumerate(rows):
            ids[i, : len(asked) + len(answered)] = torch.tensor([*asked, *answered])
            labels[i, len(asked) : len(asked) + len(answered)] = torch.tensor(answered)
        lengths = torch.tensor([len(asked) + len(answered) for asked, answered in rows])
        return ids, torch.arange(length)[None] < lengths[:, None], labels


def patches(pictures: Sequence[Image.Image]) -> Tensor:
    """Patches as Qwen2.5-VL's processor cuts them of pictures of the world's side, but all at once.

    Returns:
        float32 (pictures · patches, 3 · 2 · patch²): groups that are merged lie together, the one frame twice.
    """
    x = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, 1).float() / 255.0
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    b, merged = len(x), _GRID // VLM_MERGE
    x = x.reshape(b, 3, merged, VLM_MERGE, VLM_PATCH, merged, VLM_MERGE, VLM_PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # rows, columns, row and column within, channel, frame, pixels
    return x.expand(*x.shape[:6], 2, *x.shape[7:]).reshape(b * _GRID * _GRID, -1)


def preprocessor_config() -> dict[str, Any]:
    """`preprocessor_config.json`: both limits are the world's pictures, so no picture is read at another size."""
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
