"""Our functions compute what the published ones do. `UNIWORLD_GOLDEN_EDITR1` names another folder of the same kind."""

from __future__ import annotations

import re
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
from uniworld.training.editr1.history import SampleHistory
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


def test_orders_that_the_published_sampler_refuses_golden(editr1_golden: Any) -> None:
    groups, count = numbers_in(editr1_golden.settings["sampler_too_few"])
    with pytest.raises(UniWorldError, match=f"{count} samples, and each epoch needs {groups}"):
        published_order([str(number) for number in range(count)], (), 2 * groups, 2, 1, 0, 0)
    samples, k = numbers_in(editr1_golden.settings["sampler_uneven"])
    with pytest.raises(UniWorldError, match=f"{samples} samples are not a multiple of k = {k}"):
        published_order([str(number) for number in range(samples)], (), samples, k, 1, 0, 0)


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


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
        counts = [len(one.rewards) for one in found.stats.values()]
        assert float(np.mean(counts)) == pytest.approx(settings["group_size"]), name
        assert found.flat_share == pytest.approx(settings["zero_std_ratio"]), name
        # The published percentiles are those of all columns at once.
        repeated = [prompt for prompt in settings["prompts"] for _ in range(columns)]
        everything = advantages(tensors["rewards"].flatten().numpy(), repeated, chosen)
        for percent, mean in settings["top_means"].items():
            assert everything.top_mean(float(percent)) == pytest.approx(mean, rel=1e-12), name
        spreads = [one.std for one in found.stats.values()]
        assert float(np.mean(spreads)) == pytest.approx(settings["reward_std_mean"], rel=1e-6, abs=1e-12), name
        assert int(found.valid.sum()) * columns == settings["columns_valid"], name


def test_history_golden(editr1_golden: Any) -> None:
    """Two epochs, of the samples a and b and of a and c. The case has their advantages, which determine the rewards."""
    ((_, settings, tensors),) = editr1_golden.cases("tracker_twice")
    history, chosen = SampleHistory(), AdvantageSettings()
    good = (chosen.max_mean + 1) / 2
    for samples, key in (((0, 1), "first_advantages"), ((0, 2), "second_advantages")):
        wanted = tensors[key][:, 0].numpy()
        rewards = rewards_with(wanted, good)
        found = advantages(rewards, [0, 0, 1, 1], chosen)
        np.testing.assert_allclose(found.values, wanted, rtol=1e-12)
        history.add(found, dict(enumerate(samples)))
    assert len(history.painted) == settings["history"]
    assert [("a", "b", "c")[sample] for sample in history.mastered] == settings["banned"]
    assert SampleHistory.from_json(history.to_json()) == history


def rewards_with(values: np.ndarray, mean: float) -> np.ndarray:
    """Return rewards of two pairs that have these advantages, divided by the global spread; `mean` is that of the second.

    The spread of all is that within the pairs and the distance of their means, which is what is left for it.
    """
    spread = 0.3  # any other gives the same advantages
    distance = 2 * np.sqrt((spread - 1e-4) ** 2 - (spread * values).var())
    return spread * values + mean - distance * np.array([1, 1, 0, 0])


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
PUBLISHED = {"editr1_kontext": "config_kontext_nft_as_meant", "editr1_qwen": "config_qwen_mllm_reward"}
PUBLISHED_NAMES = {"editr1_kontext": "config_kontext_nft", "editr1_qwen": "config_qwen_image_edit_nft"}


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
    assert config.advantage.max_mean == sample.get("ban_mean_thres", 0.9)  # Kontext's configuration forgets it
    assert config.advantage.retire == sample["ban_prompt"]
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
    # {number of GPUs: batch and batches of an epoch, or an error}
    batches = editr1_golden.settings[f"{PUBLISHED_NAMES[preset]}_batches"]
    for gpus, found in batches.items():
        if not isinstance(found, str):
            assert int(gpus) * found[0] * found[1] == editr1.groups * editr1.group_size


# Starts of the names of cases, and what compares them. "none" are remarks of how the published code fails.
COMPARED = {
    "decay": "test_decay_golden",
    "old_update": "test_old_update_golden",
    "ema_": "test_ema_golden",
    "sampler_": "test_order_golden",
    "advantages_": "test_advantages_golden",
    "tracker_twice": "test_history_golden",
    "timesteps_": "test_times_golden",
    "loss_": "test_loss_golden",
    "dataset": "test_pictures_golden",
    "config_": "test_presets_golden",
    "schedule_": "test_golden_solvers.py",
    "solver_": "test_golden_solvers.py",
    "toy_velocity": "test_golden_solvers.py",
    "score": "reward/test_golden_score.py",
    "true_cfg": "tests/uniworld_core/families/qwen_image_edit",
}


def test_every_golden_case_is_compared(editr1_golden: Any) -> None:
    assert [name for name in editr1_golden.settings if not name.startswith(tuple(COMPARED))] == []
