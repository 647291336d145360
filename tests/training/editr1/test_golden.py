"""Our functions compute what the published ones do. `UNIWORLD_GOLDEN_EDITR1` names another folder of the same kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from uniworld.training.config.editr1 import AdvantageSettings, EditR1Config, LossSettings
from uniworld.training.config.file import load_any
from uniworld.training.editr1.advantage import advantages
from uniworld.training.editr1.decay import PUBLISHED_DECAYS, old_decay
from uniworld.training.editr1.groups import published_order
from uniworld.training.editr1.loss import LossTerms, loss_terms, masked_mean, optimality
from uniworld.training.editr1.pictures import square_crop
from uniworld.training.editr1.policy import blend
from uniworld.training.editr1.times import published_count, published_times
from uniworld.training.engine.ema import ShardedEMA, ema_decay
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.sampling import flow


def test_decay_golden(editr1_golden: Any) -> None:
    ((_, settings, _),) = editr1_golden.cases("decay")
    for number, name in PUBLISHED_DECAYS.items():
        found = [old_decay(name, step) for step in settings["steps"]]
        assert found == pytest.approx(settings[f"type{number}"], rel=1e-12, abs=0)


def test_old_update_golden(editr1_golden: Any) -> None:
    ((_, settings, tensors),) = editr1_golden.cases("old_update")
    for step in settings["rule_checked_at"]:
        old = tensors["old"].clone()
        blend({"w": old}, {"w": tensors["theta"]}, old_decay(PUBLISHED_DECAYS[settings["decay_type"]], step))
        torch.testing.assert_close(old, tensors[f"after_step{step}"], rtol=1e-6, atol=1e-7)


def test_ema_golden(editr1_golden: Any) -> None:
    for name, settings, tensors in editr1_golden.cases("ema_"):
        count = sum(key.startswith("start") for key in tensors)
        parameters = {str(number): nn.Parameter(tensors[f"start{number}"].clone()) for number in range(count)}
        ema = ShardedEMA(parameters, settings["limit"], first=1)
        for step, decay in zip(settings["steps"], settings["decays"]):
            assert ema_decay(step, settings["limit"]) == pytest.approx(decay, rel=1e-12), name
            for number in range(count):
                parameters[str(number)].data.copy_(tensors[f"param{number}_{step}"])
            if (step - 1) % settings["every"] == 0:  # we update after every step
                ema.updates = step - 1
                ema.update()
            for key, average in ema.gather():
                torch.testing.assert_close(average, tensors[f"ema{key}_{step}"], rtol=1e-6, atol=1e-7, msg=name)


def test_order_golden(editr1_golden: Any) -> None:
    for name, settings, tensors in editr1_golden.cases("sampler_"):
        arguments = (
            settings["prompts"],
            settings["banned"],
            settings["batch_size"],
            settings["k"],
            settings["world"],
            settings["seed"],
        )
        assert settings["world"] * settings["batch_size"] // settings["k"] == settings["groups"]
        for epoch, indices in zip(settings["epochs"], tensors["indices"]):
            assert published_order(*arguments, epoch).equal(indices), name


def test_orders_that_the_published_sampler_refuses() -> None:
    with pytest.raises(UniWorldError, match="3 samples, and each epoch needs 4"):
        published_order(["a", "b", "c"], (), 4, 2, 2, 0, 0)
    with pytest.raises(UniWorldError, match="5 samples are not a multiple of k = 3"):
        published_order(["a", "b", "c"], (), 5, 3, 1, 0, 0)


def test_advantages_golden(editr1_golden: Any) -> None:
    for name, settings, tensors in editr1_golden.cases("advantages_"):
        chosen = AdvantageSettings(
            "global" if settings["global_std"] else "group",
            "published" if settings["filter"] else "none",
            settings["ban_std_thres"],
            settings["ban_mean_thres"],
        )
        columns = tensors["rewards"].shape[1]
        for column in range(columns):
            found = advantages(tensors["rewards"][:, column].numpy(), settings["prompts"], chosen)
            wanted = {key: tensors[key][:, column].numpy() for key in ("advantages", "means", "stds", "valid_mask")}
            np.testing.assert_allclose(found.values, wanted["advantages"], rtol=1e-12, atol=1e-12, err_msg=name)
            stats = [found.stats[prompt] for prompt in settings["prompts"]]
            np.testing.assert_allclose([one.mean for one in stats], wanted["means"], rtol=1e-12, err_msg=name)
            np.testing.assert_allclose([one.std for one in stats], wanted["stds"], rtol=1e-12, atol=1e-15, err_msg=name)
            np.testing.assert_array_equal(found.valid, wanted["valid_mask"].astype(bool), err_msg=name)
        assert sorted(map(str, found.mastered)) == settings["banned"], name
        assert len(found.stats) == settings["trained_prompts"], name
        counts = [one.count for one in found.stats.values()]
        assert float(np.mean(counts)) == pytest.approx(settings["group_size"]), name
        assert found.flat_share == pytest.approx(settings["zero_std_ratio"]), name
        spreads = [one.std for one in found.stats.values()]
        assert float(np.mean(spreads)) == pytest.approx(settings["reward_std_mean"], rel=1e-6, abs=1e-12), name
        assert int(found.valid.sum()) * columns == settings["columns_valid"], name


def test_times_golden(editr1_golden: Any) -> None:
    for name, settings, tensors in editr1_golden.cases("timesteps_"):
        samples, steps = tensors["timesteps"].shape
        generator = torch.Generator("cpu").manual_seed(settings["torch_seed"])
        order, levels = published_times(samples, steps, generator)
        assert order.equal(tensors["perm"]), name
        assert levels.equal(tensors["perms_time"]), name
        assert tensors["timesteps"][order].gather(1, levels).equal(tensors["shuffled_timesteps"]), name
        assert published_count(steps) == settings["trained_columns"], name


def _loss(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, LossTerms, torch.Tensor]:
    chosen = LossSettings(settings["beta"], settings["adv_clip_max"], settings["adv_mode"], settings["kl_weight"])
    v = tensors["v_theta"].clone().requires_grad_()
    r = optimality(tensors["advantages"], chosen)
    torch.testing.assert_close(r, tensors["r"], rtol=1e-12, atol=1e-12)
    noise, sigma = tensors["noise"], tensors["t"].reshape(-1, *(1,) * (v.ndim - 1))
    noisy = flow.add_noise(tensors["x0"].float(), noise, sigma)
    torch.testing.assert_close(noisy, tensors["xt"], rtol=1e-6, atol=1e-6)
    others = (tensors[key] for key in ("v_old", "v_ref", "x0", "xt", "t"))
    terms = loss_terms(v, *others, r, chosen)
    valid = tensors["valid_mask"]
    total = masked_mean(terms.policy, valid) + chosen.kl * masked_mean(terms.kl, valid)
    total.backward()
    assert v.grad is not None
    return total.detach(), terms, v.grad


def test_loss_golden(editr1_golden: Any) -> None:
    for name, settings, tensors in editr1_golden.cases("loss_"):
        total, terms, gradient = _loss(settings, tensors)
        assert total.dtype == torch.float64, name
        exact = {"rtol": 1e-12, "atol": 1e-12, "msg": lambda text, name=name: f"{name}: {text}"}
        torch.testing.assert_close(terms.positive_weight, tensors["weight_factor"], **exact)
        torch.testing.assert_close(terms.negative_weight, tensors["negative_weight_factor"], **exact)
        torch.testing.assert_close(terms.positive.detach(), tensors["positive_loss"], **exact)
        torch.testing.assert_close(terms.negative.detach(), tensors["negative_loss"], **exact)
        masked = terms.policy.detach() / settings["adv_clip_max"] * tensors["valid_mask"]
        torch.testing.assert_close(masked, tensors["per_sample"], **exact)
        torch.testing.assert_close(total, tensors["loss"], **exact)
        assert float(total) == pytest.approx(settings["loss"], rel=1e-12), name
        kl = masked_mean(terms.kl.detach().float(), tensors["valid_mask"])
        torch.testing.assert_close(kl, tensors["kl"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gradient, tensors["grad_v_theta"], rtol=1e-6, atol=1e-9)


def test_pictures_golden(editr1_golden: Any) -> None:
    ((_, settings, tensors),) = editr1_golden.cases("dataset")
    names = [key.removeprefix("picture") for key in tensors if key.startswith("picture")]
    assert names
    for name in names:
        seen = square_crop(Image.fromarray(tensors[f"picture{name}"].numpy()), settings["resolution"])
        assert np.array_equal(np.asarray(seen), tensors[f"seen{name}"].numpy())


# {preset: case}; "as_meant" is what the published configuration would be if it could be opened.
PUBLISHED = {"editr1_kontext": "config_kontext_nft_as_meant", "editr1_qwen": "config_qwen_image_edit_nft_as_meant"}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_golden(preset: str, editr1_golden: Any) -> None:
    config = load_any(preset)
    assert isinstance(config, EditR1Config)
    published = editr1_golden.settings[PUBLISHED[preset]]
    sample, train, editr1 = published["sample"], published["train"], config.editr1
    assert (editr1.group_size, editr1.steps, editr1.solver) == (
        sample["num_image_per_prompt"],
        sample["num_steps"],
        sample["solver"],
    )
    assert (editr1.guidance, editr1.side) == (sample["guidance_scale"], published["resolution"])
    assert editr1.times == published_count(sample["num_steps"], train["timestep_fraction"])
    assert editr1.old == PUBLISHED_DECAYS[published["decay_type"]]
    assert (config.loss.beta, config.loss.clip, config.loss.mode, config.loss.kl) == (
        published["beta"],
        train["adv_clip_max"],
        train["adv_mode"],
        train["beta"],
    )
    assert (config.advantage.spread == "global") == sample["global_std"]
    assert config.advantage.min_std == sample["ban_std_thres"]
    optimizer = config.optimizer
    assert (optimizer.lr, *optimizer.betas, optimizer.eps, optimizer.weight_decay, optimizer.clip) == (
        train["learning_rate"],
        train["adam_beta1"],
        train["adam_beta2"],
        train["adam_epsilon"],
        train["adam_weight_decay"],
        train["max_grad_norm"],
    )
    assert (config.run.seed, config.run.micro_batch_size) == (published["seed"], train["batch_size"])
