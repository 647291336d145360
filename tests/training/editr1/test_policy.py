"""Adapters and policies: what acts, what is restored, and what peft computes with the exported files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from uniworld.training.config.editr1 import PolicySettings
from uniworld.training.editr1.adapters import ADAPTER_FILE, SINGLE_FILE, Adapters, write_adapters
from uniworld.training.editr1.policy import PainterTower, Policy, ShardedPainter
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.sampling.condition import Condition
from uniworld.uniworld_core.sampling.flow import Shift
from uniworld.uniworld_core.sampling.latents import LatentFormat


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict(
            {"to_q": nn.Linear(6, 4), "to_out": nn.ModuleList([nn.Linear(4, 6), nn.Dropout(0.0)])}
        )
        self.ff = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ff(x + self.attn["to_out"][0](self.attn["to_q"](x)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


SETTINGS = PolicySettings(rank=2, alpha=6.0, targets=("attn.to_q", "attn.to_out.0"))


def random_b(net: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter))


def test_adapters_start_without_effect_and_can_be_disabled() -> None:
    net, x = network(), torch.randn(3, 6)
    plain = net(x)
    adapters = Adapters(net, SETTINGS, seed=1)
    assert sorted(adapters.layers) == ["0.attn.to_out.0", "0.attn.to_q", "1.attn.to_out.0", "1.attn.to_q"]
    assert torch.equal(net(x), plain)
    random_b(net)
    assert not torch.allclose(net(x), plain)
    with adapters.disabled():
        assert torch.equal(net(x), plain)
    assert not torch.allclose(net(x), plain)


def test_the_start_depends_on_the_seed_and_the_name_alone() -> None:
    nets = [network() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2)):
        Adapters(net, SETTINGS, seed)
    one, same, other = ({k: v for k, v in net.state_dict().items() if "lora_A" in k} for net in nets)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    wide = nn.Sequential(nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(400, 4)})}))
    Adapters(wide, PolicySettings(rank=16), 0)
    assert wide.state_dict()["0.attn.to_q.lora_A.weight"].std() == pytest.approx(1 / 16, rel=0.05)


def test_both_files_apply_as_trained(tmp_path: Path) -> None:
    net, x = network(), torch.randn(3, 6)
    Adapters(net, SETTINGS, seed=1)
    random_b(net)
    trained = net(x)
    weights = {name: tensor for name, tensor in net.state_dict().items() if "lora_" in name}
    write_adapters(weights, SETTINGS, "base", tmp_path)
    for file, prefix, scale in ((ADAPTER_FILE, "base_model.model.", 3.0), (SINGLE_FILE, "transformer.", 1.0)):
        tensors, merged = load_file(tmp_path / file), network()
        for name, module in merged.named_modules():
            if f"{prefix}{name}.lora_A.weight" in tensors:
                change = tensors[f"{prefix}{name}.lora_B.weight"] @ tensors[f"{prefix}{name}.lora_A.weight"]
                module.weight.data += scale * change  # type: ignore[union-attr, operator]
        torch.testing.assert_close(merged(x), trained, rtol=1e-5, atol=1e-5)


def test_peft_computes_the_same(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    net, x = network(), torch.randn(3, 6)
    Adapters(net, SETTINGS, seed=1)
    random_b(net)
    write_adapters({k: v for k, v in net.state_dict().items() if "lora_" in k}, SETTINGS, "base", tmp_path)
    loaded = peft.PeftModel.from_pretrained(network(), tmp_path)
    torch.testing.assert_close(loaded(x), net(x), rtol=1e-6, atol=1e-6)


def test_other_names_are_refused() -> None:
    with pytest.raises(UniWorldError, match=r"ends in attn\.to_qq: choose policy\.targets among 0, ff, to_q"):
        Adapters(network(), PolicySettings(targets=("attn.to_qq",)), 0)


class Scaling(nn.Module):
    """A painter with one parameter."""

    latent_format = LatentFormat("test", 4, 8, 1, 0.0, 1.0, ())
    shift = Shift(1, 2, 0.5, 1.0)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))

    def velocity_for(self, condition: Condition, guidance: float, shape: Any) -> Any:
        return lambda x, sigma: x * self.scale * torch.as_tensor(sigma).reshape(-1, 1, 1, 1)


def policy(painter: Any) -> Policy:
    tower = PainterTower(painter)
    trained = dict(tower.named_parameters())
    old, start = {"dit.scale": torch.tensor([3.0])}, {"dit.scale": torch.tensor([5.0])}
    return Policy(tower, painter, tower, trained, old, start, None, "")


def test_each_policy_acts_in_its_block_only() -> None:
    painter, condition, x = Scaling(), Condition(torch.zeros(1, 1, 1)), torch.ones(2, 4, 1, 1)
    policies = policy(painter)

    def shown() -> float:
        velocity = policies.wrapped(x, torch.ones(2), condition, 1.0)
        return float(velocity.detach().mean())

    assert shown() == 2.0
    with policies.as_old():
        assert shown() == 3.0
    with policies.as_reference():
        assert shown() == 5.0
    assert shown() == 2.0
    with pytest.raises(RuntimeError), policies.as_old():
        raise RuntimeError
    assert shown() == 2.0


def test_a_sharded_painter_computes_what_its_painter_does() -> None:
    painter, x = Scaling(), torch.randn(2, 4, 1, 1)
    condition = Condition(torch.zeros(1, 1, 1))
    through = ShardedPainter(PainterTower(painter), painter)
    with torch.inference_mode():
        found = through.velocity_for(condition, 1.0, x.shape)(x, 0.25)
    torch.testing.assert_close(found, x * 2.0 * 0.25)
