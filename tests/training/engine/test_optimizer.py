"""Optimizers, the learning rate, and the norm of the gradient."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import nn
from uniworld.training.config.settings import OptimizerSettings
from uniworld.training.engine import optimizer
from uniworld.training.engine.optimizer import (
    clip_factor,
    gradient_norm,
    learning_rate,
    make_optimizer,
    scale_gradients,
    set_learning_rate,
)
from uniworld.uniworld_core.loading import dtypes


def with_gradients(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [
        nn.Parameter(torch.randn(3, 2, generator=generator)),
        nn.Parameter(torch.randn(4, generator=generator)),
    ]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10
    return parameters


class TestLearningRate:
    def test_without_a_schedule_is_constant(self) -> None:
        settings = OptimizerSettings(lr=0.5)
        assert [learning_rate(settings, step, 10) for step in (0, 5, 9)] == [0.5, 0.5, 0.5]

    @pytest.mark.parametrize("schedule", ["constant_with_warmup", "cosine"])
    def test_follows_diffusers_schedules(self, schedule: str) -> None:
        from diffusers.optimization import get_scheduler

        settings = OptimizerSettings(lr=0.5, schedule=schedule, warmup=4)
        sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        theirs = get_scheduler(schedule, sgd, num_warmup_steps=4, num_training_steps=12)
        for step in range(12):
            assert learning_rate(settings, step, 12) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
            sgd.step()
            theirs.step()

    def test_is_what_the_next_step_uses(self) -> None:
        parameters = with_gradients()
        before = [parameter.detach().clone() for parameter in parameters]
        made = make_optimizer(parameters, OptimizerSettings())
        set_learning_rate(made, 0.0)
        made.step()
        assert all(torch.equal(old, new) for old, new in zip(before, parameters))


class TestStep:
    def test_of_adamw_is_pytorchs(self) -> None:
        ours, theirs = with_gradients(), with_gradients()
        make_optimizer(ours, OptimizerSettings(lr=0.1, betas=(0.5, 0.75), weight_decay=0.1)).step()
        torch.optim.AdamW(theirs, lr=0.1, betas=(0.5, 0.75), eps=1e-8, weight_decay=0.1).step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs))

    def test_of_prodigy_descends_without_tuning_its_rate(self, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("prodigyopt")
        parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
        made = make_optimizer([parameter], OptimizerSettings(name="prodigy", lr=1.0, weight_decay=0.01))
        for _ in range(200):
            made.zero_grad()
            parameter.square().sum().backward()
            made.step()
        assert parameter.abs().max() < 0.1
        assert capsys.readouterr().out == ""

    def test_of_prodigy_that_is_not_installed_names_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = builtins.__import__

        def missing(name: str, *rest: Any) -> Any:
            if name == "prodigyopt":
                raise ImportError(name)
            return found(name, *rest)

        monkeypatch.setattr(builtins, "__import__", missing)
        with pytest.raises(ValueError, match="pip install prodigyopt"):
            make_optimizer(with_gradients(), OptimizerSettings(name="prodigy"))

    def test_of_prodigy_over_sharded_parameters_is_rejected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(optimizer, "is_sharded", lambda parameter: True)
        with pytest.raises(ValueError, match=r"set run\.parallel = 'data', or optimizer\.name = 'adamw'"):
            make_optimizer(with_gradients(), OptimizerSettings(name="prodigy"))

    def test_of_muon_is_pytorchs_for_matrices_and_adamws_for_the_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: True)
        ours, theirs = with_gradients(), with_gradients()
        make_optimizer(ours, OptimizerSettings(name="muon", lr=0.1, betas=(0.5, 0.75), weight_decay=0.1)).step()
        torch.optim.Muon(theirs[:1], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
        torch.optim.AdamW(theirs[1:], lr=0.1, betas=(0.5, 0.75), eps=1e-8, weight_decay=0.1).step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs))

    def test_of_muon_without_bfloat16_instructions_iterates_in_float32(
        self, product_dtypes: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = OptimizerSettings(name="muon", lr=0.1, weight_decay=0.1)
        began, ours, theirs = with_gradients(), with_gradients(), with_gradients()
        torch.optim.Muon(theirs[:1], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
        product_dtypes.clear()
        monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: False)
        make_optimizer(ours, settings).step()
        assert product_dtypes == {torch.float32}
        moved = theirs[0] - began[0]
        torch.testing.assert_close(ours[0] - began[0], moved, rtol=0, atol=0.03 * float(moved.detach().abs().max()))
        assert torch.equal(ours[0].grad, began[0].grad)  # the iteration works on a copy

    def test_of_muon_uses_the_rate_that_is_set_after_loading_its_state(self) -> None:
        first, second = with_gradients(), with_gradients()
        made, again = (make_optimizer(some, OptimizerSettings(name="muon")) for some in (first, second))
        made.step()
        again.load_state_dict(made.state_dict())
        before = [parameter.detach().clone() for parameter in second]
        set_learning_rate(again, 0.0)
        again.step()
        assert all(torch.equal(old, new) for old, new in zip(before, second))

    def test_of_muon_in_an_older_pytorch_is_a_user_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(torch.optim, "Muon")
        with pytest.raises(ValueError, match=r"Muon needs PyTorch 2\.9 or later, but this is .*: use AdamW"):
            make_optimizer(with_gradients(), OptimizerSettings(name="muon"))

    def test_of_muon_over_sharded_parameters_is_rejected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(optimizer, "is_sharded", lambda parameter: True)
        with pytest.raises(
            ValueError,
            match=r"optimizer\.name is 'muon', which does not support the sharded .* set run\.parallel = 'data'",
        ):
            make_optimizer(with_gradients(), OptimizerSettings(name="muon"))


class TestGradient:
    def test_is_clipped_as_pytorch_does(self) -> None:
        ours, theirs = with_gradients(), with_gradients()
        norm = gradient_norm(ours)
        scale_gradients(ours, clip_factor(norm, 1.0))
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, 1.0)), rel=1e-6)
        for one, other in zip(ours, theirs):
            torch.testing.assert_close(one.grad, other.grad)

    def test_within_the_limit_or_without_one_is_unchanged(self) -> None:
        assert clip_factor(0.5, 1.0) == 1.0
        assert clip_factor(50.0, 0.0) == 1.0

    def test_of_parameters_without_a_gradient_is_zero(self) -> None:
        parameters = with_gradients()
        alone = gradient_norm(parameters)
        assert gradient_norm([*parameters, nn.Parameter(torch.ones(2))]) == alone
        assert gradient_norm([nn.Parameter(torch.ones(2))]) == 0.0
