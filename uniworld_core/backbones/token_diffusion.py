"""The diffusion head of MAR: a small network that draws the value of one token from the state of its place.

Every token is drawn on its own, by 100 ancestral steps of a Gaussian diffusion with learned variances (arXiv 2102.09672;
MAR: arXiv 2406.11838). Shapes: N tokens, C channels, W width, D width of the states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

# Steps of training and of sampling.
TRAIN_STEPS, STEPS = 1000, 100
# MAR and Harmon clip the cosine schedule's betas at 0.999. UniPic clips them at 0.2, which changes the first steps entirely.
MAX_BETA = 0.2
_MAX_PERIOD = 10000


@dataclass(frozen=True)
class HeadWidths:
    """Widths of a diffusion head.

    Attributes:
        channels: channels of a token.
        states: width of the states.
        width: width of the network.
        depth: number of residual blocks.
        frequencies: width of the embedding of the timestep.
    """

    channels: int
    states: int
    width: int
    depth: int
    frequencies: int


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x_NW: torch.Tensor, given_NW: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.adaLN_modulation(given_NW).chunk(3, dim=-1)
        return x_NW + gate * self.mlp(self.in_ln(x_NW) * (1 + scale) + shift)


class _Final(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_NW: torch.Tensor, given_NW: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(given_NW).chunk(2, dim=-1)
        return self.linear(F.layer_norm(x_NW, x_NW.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class _Timestep(nn.Module):
    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_N: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        half = self.frequencies // 2
        rates = torch.exp(-math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t_N.device) / half)
        angles = t_N[:, None].float() * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


class DiffusionHead(nn.Module):
    """Predicts the noise of tokens, and how to interpolate their variance between its two bounds."""

    def __init__(self, widths: HeadWidths) -> None:
        super().__init__()
        self.time_embed = _Timestep(widths.frequencies, widths.width)
        self.cond_embed = nn.Linear(widths.states, widths.width)
        self.input_proj = nn.Linear(widths.channels, widths.width)
        self.res_blocks = nn.ModuleList(_Residual(widths.width) for _ in range(widths.depth))
        self.final_layer = _Final(widths.width, 2 * widths.channels)

    def forward(self, x_NC: torch.Tensor, t_N: torch.Tensor, states_ND: torch.Tensor) -> torch.Tensor:
        """Return (N, 2 C): the noise, and the interpolation of the log-variance in -1..1.

        Args:
            x_NC: noisy tokens.
            t_N: timesteps of training, 0 to 999.
            states_ND: states of the tokens' places.
        """
        given = self.time_embed(t_N, states_ND.dtype) + self.cond_embed(states_ND)
        x = self.input_proj(x_NC.to(states_ND.dtype))
        for block in self.res_blocks:
            x = block(x, given)
        return self.final_layer(x, given)


@dataclass(frozen=True, eq=False)
class DiffusionTables:
    """The constants of the diffusion at a set of timesteps, float64, each (steps,).

    Attributes:
        timesteps: the timesteps of training, ascending.
        betas, alphas_cumprod: variances of the noise added at each step, and the share of the signal that remains.
        sqrt_recip, sqrt_recipm1: x0 = sqrt_recip * x - sqrt_recipm1 * noise.
        mean_x0, mean_x: the posterior's mean is mean_x0 * x0 + mean_x * x.
        log_variance: lower bound of the log-variance; the first is that of the second, as it would be minus infinity.
    """

    timesteps: torch.Tensor
    betas: torch.Tensor
    alphas_cumprod: torch.Tensor
    sqrt_recip: torch.Tensor
    sqrt_recipm1: torch.Tensor
    mean_x0: torch.Tensor
    mean_x: torch.Tensor
    log_variance: torch.Tensor


def train_betas(steps: int = TRAIN_STEPS, max_beta: float = MAX_BETA) -> torch.Tensor:
    """Return the betas (steps,), float64, of the cosine schedule (arXiv 2102.09672, equation 17), clipped."""

    def remaining(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - remaining((i + 1) / steps) / remaining(i / steps), max_beta) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


def diffusion_tables(steps: int = STEPS) -> DiffusionTables:
    """Return the tables for sampling with `steps` evenly spaced timesteps; TRAIN_STEPS gives those of training."""
    kept = (1 - train_betas()).cumprod(0)
    timesteps = torch.tensor([round(k * (TRAIN_STEPS - 1) / (steps - 1)) for k in range(steps)])
    share = kept[timesteps]
    before = torch.cat([torch.ones(1, dtype=share.dtype), share[:-1]])
    betas = 1 - share / before
    variance = betas * (1 - before) / (1 - share)
    return DiffusionTables(
        timesteps=timesteps,
        betas=betas,
        alphas_cumprod=share,
        sqrt_recip=(1 / share).sqrt(),
        sqrt_recipm1=(1 / share - 1).sqrt(),
        mean_x0=betas * before.sqrt() / (1 - share),
        mean_x=(1 - before) * (1 - betas).sqrt() / (1 - share),
        log_variance=torch.cat([variance[1:2], variance[1:]]).log(),
    )


def guided(prediction_2NC: torch.Tensor, guidance: float) -> torch.Tensor:
    """Combine predictions (2N, 2C) of conditional and unconditional rows to (N, 2C).

    Only the noise is guided; the variances are those of the conditional rows.
    """
    with_NC, without_NC = prediction_2NC.chunk(2)
    noise, interpolation = with_NC.chunk(2, dim=-1)
    other = without_NC.chunk(2, dim=-1)[0]
    return torch.cat([other + guidance * (noise - other), interpolation], dim=-1)


def draw_tokens(
    head: DiffusionHead,
    states_ND: torch.Tensor,
    noise_NSC: torch.Tensor,
    guidance: float = 1.0,
    temperature: float = 1.0,
    callback: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Draw tokens (N, C), float32, by ancestral sampling.

    Args:
        states_ND: states of the places, N conditional ones; with guidance 2 N, the unconditional ones second.
        noise_NSC: starting noise, and then the noise of each step, (N, STEPS + 1, C). The last is not used.
        guidance: used if there are unconditional states.
        temperature: factor of the steps' noise, but not of the starting noise.
        callback: called with the number of steps so far. An exception from it ends the run.
    """
    tables, device = diffusion_tables(noise_NSC.shape[1] - 1), states_ND.device
    # Cast once, as the published code does with its float64 tables.
    a, b, c, d, low, high = (
        table.float().tolist()
        for table in (
            tables.sqrt_recip,
            tables.sqrt_recipm1,
            tables.mean_x0,
            tables.mean_x,
            tables.log_variance,
            tables.betas.log(),
        )
    )
    timesteps, pairs = tables.timesteps.tolist(), len(states_ND) // len(noise_NSC)
    noise = noise_NSC.to(device, torch.float32)
    x = noise[:, 0]
    for step, k in enumerate(reversed(range(len(timesteps))), 1):
        t = torch.full((len(states_ND),), timesteps[k], device=device)
        predicted = head(x.repeat(pairs, 1), t, states_ND).float()
        predicted = guided(predicted, guidance) if pairs == 2 else predicted
        eps, interpolation = predicted.chunk(2, dim=-1)
        share = (interpolation + 1) / 2
        mean = c[k] * (a[k] * x - b[k] * eps) + d[k] * x
        x = mean
        if k > 0:
            x = mean + torch.exp(0.5 * (share * high[k] + (1 - share) * low[k])) * noise[:, step] * temperature
        if callback is not None:
            callback(step)
    return x


# How often a token is repeated in training, each time with another timestep (published: diffusion_batch_mul).
REPEATS = 4


def diffusion_objective(
    head: DiffusionHead,
    x_BLC: torch.Tensor,
    states_BLD: torch.Tensor,
    hidden_BL: torch.Tensor,
    generator: torch.Generator | None = None,
    repeats: int = REPEATS,
) -> torch.Tensor:
    """Return the training objective, a scalar: the mean loss of the hidden tokens.

    Args:
        x_BLC: clean tokens, normalized.
        states_BLD: states of their places.
        hidden_BL: True at hidden tokens, at least one.
        generator: draws timesteps and noise; None for torch's own.
        repeats: how often each token is repeated.
    """
    device = x_BLC.device
    x = x_BLC.flatten(0, 1).repeat(repeats, 1)
    states = states_BLD.flatten(0, 1).repeat(repeats, 1)
    hidden = hidden_BL.flatten().repeat(repeats).to(device, torch.float32)
    t = torch.randint(0, TRAIN_STEPS, (len(x),), generator=generator, device=device)
    noise = torch.randn(x.shape, generator=generator, device=device)
    return (diffusion_loss(head, x, states, t, noise) * hidden).sum() / hidden.sum()


def diffusion_loss(
    head: DiffusionHead, x_NC: torch.Tensor, states_ND: torch.Tensor, t_N: torch.Tensor, noise_NC: torch.Tensor
) -> torch.Tensor:
    """Return the training loss (N,) of each token: the error of the noise, plus the bound that trains the variances.

    The bound (in bits per channel) passes no gradient to the predicted noise (arXiv 2102.09672, section 3.1).

    Args:
        x_NC: clean tokens, normalized.
        states_ND: states of their places.
        t_N: timesteps, 0 to 999.
        noise_NC: standard normal noise.
    """
    tables = diffusion_tables(TRAIN_STEPS)

    def at(table: torch.Tensor) -> torch.Tensor:
        return table.to(t_N.device)[t_N].float()[:, None]

    x, noise = x_NC.float(), noise_NC.float()
    share = at(tables.alphas_cumprod)
    noisy = share.sqrt() * x + (1 - share).sqrt() * noise
    predicted, interpolation = head(noisy, t_N, states_ND).float().chunk(2, dim=-1)
    error = (noise - predicted).square().mean(dim=-1)

    low, high, weight = at(tables.log_variance), at(tables.betas.log()), (interpolation + 1) / 2
    log_variance = weight * high + (1 - weight) * low
    guess = at(tables.sqrt_recip) * noisy - at(tables.sqrt_recipm1) * predicted.detach()
    mean = at(tables.mean_x0) * guess + at(tables.mean_x) * noisy
    true_mean = at(tables.mean_x0) * x + at(tables.mean_x) * noisy
    ratio = log_variance - low
    divergence = 0.5 * (ratio - 1 + torch.exp(-ratio) + (true_mean - mean).square() * torch.exp(-log_variance))
    bits = torch.where(t_N[:, None] == 0, _last_step_nats(x, mean, log_variance), divergence) / math.log(2)
    return error + bits.mean(dim=-1)


def _last_step_nats(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return -log p(x) of the step to t = 0, with x in bins of 2 / 255 whose outer ones are open (arXiv 2006.11239, 3.3)."""
    scale = torch.exp(-0.5 * log_variance)

    def below(value: torch.Tensor) -> torch.Tensor:
        # The approximation of the normal distribution that the published diffusion uses.
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    upper, lower = below(scale * (x - mean + 1 / 255)), below(scale * (x - mean - 1 / 255))
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return -mass.clamp(min=1e-12).log()
