"""UniPic's own sampling loop: masked autoregression, in which every iteration reveals more tokens of the picture.

Shapes: as in `network`; S steps of the diffusion of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...backbones.token_diffusion import STEPS, draw_tokens
from ...errors import UniWorldError, shown
from ...images.sizes import Size
from ...loading.offload import explain_out_of_memory
from ...sampling.condition import Condition
from ...sampling.seeds import check_seed
from .condition import as_tokens
from .config import GUIDANCE, ITERATIONS, NAME, SCHEDULES, TEMPERATURE, UNIPIC_LATENTS, UniPicConfig
from .network import PromptPrefix, UniPic


@dataclass(frozen=True, eq=False)
class Revealed:
    """The state of a run, after every step of the diffusion and at the end of every iteration.

    Attributes:
        iteration, iterations: the iteration, from 0, and the number of iterations.
        work: share of the whole work that is done. Late iterations take several times longer than early ones.
        latents: at the end of an iteration the normalized latents (B, C, h, w), zeros at hidden tokens; else None.
        visible: with `latents`, (B, h, w), True at revealed tokens; else None.
    """

    iteration: int
    iterations: int
    work: float
    latents: torch.Tensor | None = None
    visible: torch.Tensor | None = None


@dataclass(frozen=True)
class Iteration:
    """One iteration of the plan.

    Attributes:
        hidden: number of tokens that are hidden after it.
        guidance: its guidance.
    """

    hidden: int
    guidance: float


def plan(tokens: int, iterations: int, guidance: float, schedule: str) -> list[Iteration]:
    """Return the iterations of a run, without those that would reveal nothing.

    After iteration s of N, tokens * cos(pi/2 * (s + 1) / N) tokens are hidden (arXiv 2202.04200), and none after the last.
    A "linear" guidance grows with the share of the revealed tokens.
    """
    made, hidden = [], tokens
    for step in range(iterations):
        left = max(1, min(math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / iterations)), hidden - 1))
        linear = 1 + (guidance - 1) * (tokens - left) / tokens
        left = 0 if step == iterations - 1 else left
        if left < hidden:
            made.append(Iteration(left, linear if schedule == "linear" else guidance))
        hidden = left
    return made


def check_iterations(iterations: int, shape: tuple[int, ...]) -> None:
    """Check a number of iterations against latents of a shape (B, C, h, w). Raises UniWorldError if it exceeds the tokens."""
    tokens = shape[-2] * shape[-1]
    if not isinstance(iterations, int) or not 1 <= iterations <= tokens:
        raise UniWorldError(
            f"iterations is {shown(iterations)}; it must be from 1 to the {tokens} tokens of the picture: choose fewer "
            "iterations or a larger side."
        )


def draw_order(seeds: Sequence[int], tokens: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the order (B, L) of the tokens, revealed from its end, and their noise (B, L, S + 1, C).

    Every item has its own generator on the CPU, and every token its own noise, so neither the batch nor the number of
    iterations changes the noise of a token.
    """
    orders, noises = [], []
    for seed in map(check_seed, seeds):
        generator = torch.Generator("cpu").manual_seed(seed)
        orders.append(torch.randperm(tokens, generator=generator))
        noises.append(torch.randn((tokens, STEPS + 1, channels), generator=generator))
    return torch.stack(orders), torch.stack(noises)


@torch.inference_mode()
def paint(
    model: UniPic,
    condition: Condition,
    size: Size,
    noise: Sequence[int] | torch.Tensor,
    iterations: int = ITERATIONS,
    guidance: float = GUIDANCE,
    *,
    schedule: str = SCHEDULES[0],
    temperature: float = TEMPERATURE,
    order: torch.Tensor | None = None,
    callback: Callable[[Revealed], None] | None = None,
) -> torch.Tensor:
    """Paint latents.

    Args:
        condition: one item, or one per picture, from `encode_requests`.
        size: size of the pictures in pixels; of an edit, that of its condition.
        noise: one seed per picture, or the noise of every token (B, L, S + 1, C): where it starts, then that of each step.
        iterations: number of iterations, at most one per token.
        guidance: 1 paints without the negative condition.
        schedule: one of `SCHEDULES`.
        temperature: factor of the noise of the diffusion's steps.
        order: a permutation (B, L) of the places, revealed from its end; None draws it from the seeds.
        callback: called after every step of the diffusion and after every iteration. An exception from it ends the run.

    Returns:
        Unscaled VAE latents (B, C, h, w), float32.

    Raises:
        UniWorldError: an argument is invalid or does not match the condition, or a value is not finite (the message names
            the iteration).
    """
    shape = UNIPIC_LATENTS.shape(len(noise), size)
    order_BL, noise_BLSC = _start(noise, order, shape)
    condition = _checked(model, condition, shape, iterations, guidance, schedule, temperature)
    with explain_out_of_memory(model, "picture"):
        run = _MaskedRun(model, condition, shape, guidance != 1.0)
        steps = plan(order_BL.shape[1], iterations, guidance, schedule)
        works = run.work(steps)
        done, total = run.prefix_work, run.prefix_work + sum(works)
        for index, (step, work) in enumerate(zip(steps, works, strict=True)):

            def report(diffused: int, at: float = done, work: float = work, index: int = index) -> None:
                if callback is not None:
                    # Of an iteration's work, the part before the diffusion is done by then.
                    callback(Revealed(index, len(steps), min(1.0, (at + work * (0.5 + diffused / STEPS / 2)) / total)))

            run.reveal(order_BL, step, noise_BLSC, temperature, report)
            done += work
            if not bool(torch.isfinite(run.x_BLC).all()):
                raise UniWorldError(
                    f"A value of iteration {index + 1} of {len(steps)} is NaN or infinite: the weights are damaged, or the "
                    "compute dtype overflows; use bfloat16 or float32."
                )
            if callback is not None:
                latents, visible = run.picture()
                callback(Revealed(index, len(steps), done / total, latents, visible))
        return UNIPIC_LATENTS.from_model(run.picture()[0])


class _MaskedRun:
    """The state of one run.

    Attributes:
        x_BLC: normalized latents, float32; zeros at hidden tokens.
        visible_BL: True at revealed tokens.
        prefix_work: work of reading the prompts; see `work`.
    """

    def __init__(self, model: UniPic, condition: Condition, shape: tuple[int, ...], guided: bool) -> None:
        batch, channels, h, w = shape
        self._model, self._shape, self._pairs = model, shape, 2 if guided else 1
        self.x_BLC = torch.zeros(batch, h * w, channels, device=model.device)
        self.visible_BL = torch.zeros(batch, h * w, dtype=torch.bool, device=model.device)
        rows = [condition, condition.negative] if guided and condition.negative is not None else [condition]
        tokens, mask = _joined([one.tokens for one in rows]), _joined([_mask(one) for one in rows])
        self._prefix = PromptPrefix(model, tokens, mask)
        self.prefix_work = tokens.shape[0] * tokens.shape[1] * _weights(model.config).llm
        self._source: torch.Tensor | None = None
        if condition.references:
            source = model.read_picture(as_tokens(condition.references[0]), (h, w))
            self._source = source.repeat(self._pairs, 1, 1)

    def work(self, steps: Sequence[Iteration]) -> list[float]:
        """Return the work of each iteration: weights, times the tokens that pass them."""
        batch, tokens = self.visible_BL.shape
        weights, buffers = _weights(self._model.config), self._model.config.mar.buffers
        before = [tokens, *(step.hidden for step in steps)]
        return [
            batch
            * (
                (tokens - hidden + buffers) * (weights.encoder + self._pairs * weights.llm)
                + (tokens + buffers) * self._pairs * weights.decoder
                + (hidden - step.hidden) * self._pairs * STEPS * weights.head
            )
            for hidden, step in zip(before, steps)
        ]

    def reveal(
        self,
        order_BL: torch.Tensor,
        step: Iteration,
        noise_BLSC: torch.Tensor,
        temperature: float,
        report: Callable[[int], None],
    ) -> None:
        """Run one iteration: reveal the tokens of the order from `step.hidden` on."""
        states = self._states()
        visible = torch.ones_like(self.visible_BL).scatter_(1, order_BL[:, : step.hidden].to(states.device), False)
        new_BL = visible & ~self.visible_BL
        self.x_BLC[new_BL] = draw_tokens(
            self._model.network.head,
            states[new_BL.repeat(self._pairs, 1)],
            noise_BLSC[new_BL.to(noise_BLSC.device)],
            step.guidance,
            temperature,
            report,
        )
        self.visible_BL = visible

    def _states(self) -> torch.Tensor:
        """Return the states (R, L, W) of all places, given the visible tokens."""
        model, pairs, grid = self._model, self._pairs, (self._shape[-2], self._shape[-1])
        # Both halves see the same tokens, and only the language model tells them apart.
        seen = model.encode_visible(self.x_BLC, self.visible_BL, grid)
        heard = model.from_llm(self._prefix.states(model.for_llm(seen).repeat(pairs, 1, 1)))
        decoder = model.network.decoder
        states: torch.Tensor = decoder(
            seen.repeat(pairs, 1, 1) + heard, self.visible_BL.repeat(pairs, 1), grid, self._source
        )
        return states

    def picture(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalized latents (B, C, h, w) and the visible places (B, h, w)."""
        grid = (self._shape[-2], self._shape[-1])
        return self.x_BLC.transpose(1, 2).unflatten(-1, grid).clone(), self.visible_BL.unflatten(-1, grid)


@dataclass(frozen=True)
class _Weights:
    """Numbers of weights that a token passes in each network."""

    llm: float
    encoder: float
    decoder: float
    head: float


def _weights(config: UniPicConfig) -> _Weights:
    block = 4 * config.mar.width**2 + 2 * config.mar.width * config.mar.hidden
    return _Weights(
        llm=config.llm.layers * config.llm.layer_weights,
        encoder=config.mar.encoder_depth * block,
        decoder=config.mar.decoder_depth * block,
        head=(5 * config.head.depth + 2) * config.head.width**2,
    )


def _start(
    noise: Sequence[int] | torch.Tensor, order: torch.Tensor | None, shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, channels, h, w = shape
    if not batch:
        raise UniWorldError("There are no seeds: give one per picture.")
    if not isinstance(noise, torch.Tensor):
        drawn, values = draw_order(noise, h * w, channels)
        order = drawn if order is None else order
    elif order is None:
        raise UniWorldError(
            "The noise was given without an order: give order, a permutation of the places per picture."
        )
    else:
        values = noise
    wanted = (batch, h * w, STEPS + 1, channels)
    if tuple(values.shape) != wanted:
        raise UniWorldError(f"The noise has shape {list(values.shape)}; these pictures need {list(wanted)}.")
    places = torch.arange(h * w).expand(batch, -1)
    if order.dtype not in (torch.int64, torch.int32):
        raise UniWorldError(f"The order has dtype {order.dtype}; it must be int64, such as that of torch.randperm.")
    if tuple(order.shape) != (batch, h * w) or not bool((order.cpu().sort(dim=1).values == places).all()):
        raise UniWorldError(
            f"The order has shape {list(order.shape)}; it must be a permutation of {h * w} places for each of {batch} pictures."
        )
    return order, values


def _checked(
    model: UniPic,
    condition: Condition,
    shape: tuple[int, ...],
    iterations: int,
    guidance: float,
    schedule: str,
    temperature: float,
) -> Condition:
    """Check the arguments of `paint`, and return the condition with one item per picture."""
    check_iterations(iterations, shape)
    if not 0 <= guidance < float("inf"):
        raise UniWorldError(f"guidance is {guidance}; it must be a number of at least 0.")
    if not 0 <= temperature < float("inf"):
        raise UniWorldError(f"temperature is {temperature}; it must be a number of at least 0.")
    if schedule not in SCHEDULES:
        raise UniWorldError(f"schedule is {shown(schedule)}; it must be one of {', '.join(SCHEDULES)}.")
    width = model.config.llm.width
    if condition.tokens.shape[-1] != width or condition.pooled is not None:
        raise UniWorldError(
            f"The condition has a width of {condition.tokens.shape[-1]}; this {NAME} takes {width}: encode the prompt with "
            "the same model."
        )
    if guidance != 1 and condition.negative is None:
        raise UniWorldError(f"guidance is {guidance}, but the condition has no negative one: set guidance to 1.")
    if len(condition.references) > 1:
        raise UniWorldError(
            f"The condition has {len(condition.references)} references, and {NAME} edits one: leave out others."
        )
    for latent in condition.references:
        if tuple(latent.shape[-2:]) != shape[-2:]:
            h, w = (side * UNIPIC_LATENTS.factor for side in latent.shape[-2:])
            raise UniWorldError(
                f"The picture to edit was encoded at {w}x{h}, but {shape[-1] * UNIPIC_LATENTS.factor}x"
                f"{shape[-2] * UNIPIC_LATENTS.factor} is to be painted: use the same size for both."
            )
    return condition.repeat(shape[0])


def _mask(condition: Condition) -> torch.Tensor:
    given = condition.mask
    return torch.ones(condition.tokens.shape[:2], dtype=torch.bool) if given is None else given.cpu()


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate (B, T, ...) tensors of different T, padded on the right with zeros."""
    longest = max(row.shape[1] for row in rows)
    return torch.cat(
        [torch.cat([row, row.new_zeros(len(row), longest - row.shape[1], *row.shape[2:])], dim=1) for row in rows]
    )
