"""The policies of a run as states of one model: theta trains, old paints the rollouts, reference holds theta back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...uniworld_core import UniWorld
from ...uniworld_core.loading.storage import FloatStorage
from ...uniworld_core.sampling.condition import Condition
from ...uniworld_core.sampling.flow import Velocity
from ..config.editr1 import EditR1Config
from ..engine.optimizer import local
from ..engine.parallel import World, parallelize, reshard
from ..engine.precision import plain_ops
from .adapters import Adapters

# Values of each tensor that go into a fingerprint.
_FINGERPRINT_VALUES = 64


class PainterTower(nn.Module):
    """A painter with a forward pass, as DDP and FSDP2 need it: the velocity of noisy latents."""

    def __init__(self, dit: Any) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, latents: Tensor, sigma_B: Tensor, condition: Condition, guidance: float) -> Tensor:
        """Return the velocity of latents (B, C, ...) at noise levels (B,), float32."""
        velocity: Tensor = self.dit.velocity_for(condition, guidance, latents.shape)(latents, sigma_B)
        return velocity


class ShardedPainter:
    """A painter whose forward passes go through FSDP2's root module, which gathers the shards. Otherwise as the painter."""

    def __init__(self, wrapped: nn.Module, painter: Any) -> None:
        self._wrapped, self._painter = wrapped, painter
        self.latent_format, self.shift = painter.latent_format, painter.shift

    @property
    def device(self) -> torch.device:
        return self._painter.device

    @property
    def dtype(self) -> torch.dtype:
        return self._painter.dtype

    def check(self, condition: Condition, shape: Sequence[int]) -> None:
        self._painter.check(condition, shape)

    def velocity_for(self, condition: Condition, guidance: float, shape: Sequence[int]) -> Velocity:
        """Return the velocity function of one run; see `Painter.velocity_for`. Collective, and so is the function."""

        def velocity(latents: Tensor, sigma: Tensor | float) -> Tensor:
            sigma_B = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
            # FSDP2 reuses its buffers in training, where tensors made in inference mode are not allowed.
            with torch.inference_mode(False), torch.no_grad():
                return self._wrapped(latents.clone(), sigma_B.clone(), condition, guidance)

        return velocity


@dataclass(frozen=True)
class Policy:
    """The policies. A rollout or a velocity is computed by whichever is acting; theta acts by default.

    Attributes:
        tower: the painter as a module.
        painter: the painter that samplers take.
        wrapped: the tower wrapped by DDP or FSDP2, or the tower itself.
        trained: {name in the tower: trainable parameter}, sharded if FSDP2 shards it: theta.
        old: {name: tensor}, sharded in the same way.
        reference: the same for the start of a run that trains everything; None with adapters, which are turned off.
        adapters: the adapters, or None.
        frozen: fingerprint of the model at the start.
    """

    tower: PainterTower
    painter: Any
    wrapped: nn.Module
    trained: dict[str, nn.Parameter]
    old: dict[str, Tensor]
    reference: dict[str, Tensor] | None
    adapters: Adapters | None
    frozen: str

    def as_old(self) -> AbstractContextManager[None]:
        """Let the old policy act within the block."""
        return self._acting(self.old)

    def as_reference(self) -> AbstractContextManager[None]:
        """Let the reference policy act within the block."""
        if self.reference is not None:
            return self._acting(self.reference)
        return nullcontext() if self.adapters is None else self.adapters.disabled()

    def old_fingerprint(self, world: World) -> str:
        """Return a digest of every bit of the old policy. Collective."""
        digest = hashlib.sha256()
        for name, tensor in self.old.items():
            digest.update(name.encode() + local(tensor).detach().float().cpu().numpy().tobytes())
        mine = digest.hexdigest()
        # Replicas are equal; shards differ.
        return hashlib.sha256("".join(sorted(set(world.gather_objects(mine)))).encode()).hexdigest()[:32]

    @contextmanager
    def _acting(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        theta = {name: local(value).detach().clone() for name, value in self.trained.items()}
        try:
            self._become({name: local(value) for name, value in state.items()})
            yield
        finally:
            self._become(theta)

    @torch.no_grad()
    def _become(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            local(parameter).copy_(values[name])
        # FSDP2 keeps the gathered parameters of its root after a forward pass, and the next pass would use them again.
        reshard(self.wrapped)


@torch.no_grad()
def blend(old: Mapping[str, Tensor], theta: Mapping[str, Tensor], decay: float) -> None:
    """Update the old policy in place: old = decay * old + (1 - decay) * theta."""
    for name, tensor in old.items():
        local(tensor).mul_(decay).add_(local(theta[name]).detach().to(local(tensor)), alpha=1.0 - decay)


def open_policy(config: EditR1Config, model: UniWorld, world: World) -> Policy:
    """Load the painter of a model for training.

    Raises:
        UniWorldError: the painter has none of `policy.targets`, or its weights cannot be read.
    """
    full, compute = config.policy.kind == "full", model.dtype
    # A copy of its own, because training changes it. What trains is in float32, and autocast lowers what it may lower.
    storage = FloatStorage(torch.float32 if full else compute)
    tower = PainterTower(model.parts["dit"].load(storage, world.device))
    network = network_of(tower.dit)
    frozen = fingerprint(tower, model.vae)
    tower.requires_grad_(full)
    adapters = None if full else Adapters(network, config.policy, config.run.seed)
    if config.policy.checkpointing:
        context = lambda: (nullcontext(), plain_ops(world.device, compute))  # noqa: E731
        network.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=context))
    wrapped = parallelize(tower, world, compute)
    # Collected here, because FSDP2 replaces the module's parameters by its own.
    trained = {name: parameter for name, parameter in tower.named_parameters() if parameter.requires_grad}
    old, start = ({name: value.detach().clone() for name, value in trained.items()} for _ in range(2))
    sharded = world.size > 1 and world.engine == "fsdp"
    painter = ShardedPainter(wrapped, tower.dit) if sharded else tower.dit
    return Policy(tower, painter, wrapped, trained, old, start if full else None, adapters, frozen)


def network_of(painter: Any) -> Any:
    """Return the network within a painter, whose names are those of the published files; a painter may be one itself."""
    networks = painter.networks
    return networks[0] if len(networks) == 1 else painter


def fingerprint(*modules: nn.Module) -> str:
    """Return a digest of the names, shapes and first values of all parameters."""
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            first = parameter.detach().flatten()[:_FINGERPRINT_VALUES].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + first.numpy().tobytes())
    return digest.hexdigest()[:32]
