"""A run with rewards: it trains, resumes, and says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from uniworld.training.cli import main as cli
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.editr1.adapters import ADAPTER_CONFIG, ADAPTER_FILE, SINGLE_FILE
from uniworld.training.editr1.export import export_editr1
from uniworld.training.editr1.loop import train_editr1
from uniworld.training.editr1.providers import PROMPTS, REWARDS, Providers
from uniworld.training.editr1.reward.protocol import RewardFailure
from uniworld.training.editr1.reward.weighted import WeightedReward
from uniworld.training.engine import checkpoints
from uniworld.training.run.folder import CHECKPOINTS
from uniworld.training.run.plot import plot
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import RunFailed, UniWorldError
from uniworld.uniworld_core.lora.files import read_lora
from uniworld.uniworld_core.lora.matching import layers_of
from uniworld.uniworld_core.lora.painter import open_lora

Configure = Callable[..., EditR1Config]
Provide = Callable[..., Providers]
Rows = Callable[[Path], list[dict[str, Any]]]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints.latest(run / CHECKPOINTS)
    assert newest is not None
    return checkpoints.read_tensors(newest, "")


def assert_equal(run: Path, other: Path) -> None:
    """Theta, old, EMA, optimizer and random state are equal to the last bit."""
    left, right = tensors_of(run), tensors_of(other)
    assert sorted(left) == sorted(right)
    kinds = {name.partition("/")[0] for name in left}
    assert kinds == {"weights", "ema", "old", "optimizer", "random"}
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def test_a_run_trains_writes_sheets_and_resumes_to_the_same_bits(
    tmp_path: Path,
    first_epoch: Path,
    config_of: Configure,
    providers_of: Provide,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []  # number of epochs in the curves

    def draw(runs: dict[str, Path], to: Path) -> None:
        drawn.append(len(rows(tmp_path / "whole")))
        if drawn == [1, 2]:
            plot(runs, to)

    monkeypatch.setattr("uniworld.training.editr1.loop.plot", draw)
    whole = train_editr1(config_of("run.steps=2", "run.sheet_every=2"), tmp_path / "whole", providers_of())
    assert drawn == [1, 2]
    assert (whole.steps, whole.skipped, whole.idle, whole.interrupted) == (2, 0, 0, False)
    assert [file.name for file in (tmp_path / "whole" / "groups").iterdir()] == ["epoch-00000000.png"]
    assert (tmp_path / "whole" / "curves.png").is_file()
    with Image.open(tmp_path / "whole" / "groups" / "epoch-00000000.png") as sheet:
        assert sheet.height > sheet.width / 4  # two rows of one reference and three pictures
    shutil.copytree(first_epoch, tmp_path / "parts")
    train_editr1(config_of("run.steps=2"), tmp_path / "parts", providers_of())
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    losses = [row["loss"] for row in rows(tmp_path / "whole")]
    assert all(loss > 0 for loss in losses)
    assert [row["kl"] == 0 for row in rows(tmp_path / "whole")] == [True, False]  # adapters start without effect


def test_full_training_resumes_too_and_exports_a_checkpoint(
    tmp_path: Path, config_of: Configure, providers_of: Provide, rows: Rows
) -> None:
    settings = (
        "policy.kind=full",
        "editr1.old=on_policy",
        "loss.kl=0.1",
        "editr1.mean=published",
        "editr1.solver=ddim_sde",
    )
    train_editr1(config_of(*settings, "run.steps=2"), tmp_path / "whole", providers_of())
    train_editr1(config_of(*settings, "run.steps=1"), tmp_path / "parts", providers_of())
    train_editr1(config_of(*settings, "run.steps=2"), tmp_path / "parts", providers_of())
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    tensors = tensors_of(tmp_path / "whole")
    names = [name.removeprefix("weights/") for name in tensors if name.startswith("weights/")]
    assert all(torch.equal(tensors[f"old/{name}"], tensors[f"weights/{name}"]) for name in names)
    export_editr1(tmp_path / "whole", tmp_path / "exported", raw=True)
    assert (tmp_path / "exported" / "config.json").is_file()


def marked_to_preserve(metadata: Path, to: Path) -> Path:
    """Write the prompts of `metadata` with the mark that they are to be preserved."""
    lines = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
    images = [str(metadata.parent / line["image"]) for line in lines]
    content = [{**line, "image": image, "preserve": True} for line, image in zip(lines, images)]
    to.write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    return to


def test_the_policy_is_held_at_the_reference_on_prompts_to_preserve(
    tmp_path: Path, metadata: Path, config_of: Configure, providers_of: Provide, rows: Rows
) -> None:
    marked = marked_to_preserve(metadata, tmp_path / "marked.jsonl")
    settings = (f"data.metadata={marked}", "loss.kl=0", "run.steps=4")
    with pytest.raises(UniWorldError, match=r"preserve\.weight is 0: set it"):
        train_editr1(config_of(*settings), tmp_path / "none", providers_of())

    def distances(name: str, *more: str) -> list[float | None]:
        train_editr1(config_of(*settings, *more), tmp_path / name, providers_of())
        return [row["kl"] for row in rows(tmp_path / name)]

    free, held = distances("free", "preserve.weight=1e-12"), distances("held", "preserve.weight=1e4")
    late = distances("late", "preserve.weight=1e4", "preserve.start=3")
    assert free[0] == held[0] == 0
    assert free[3] is not None
    assert held[3] is not None
    assert 0 < held[3] < 0.5 * free[3]
    assert late[:3] == [None] * 3
    assert late[3] == pytest.approx(free[3], rel=1e-3)


def test_adapters_are_exported_in_both_layouts(tmp_path: Path, first_epoch: Path) -> None:
    export_editr1(first_epoch, tmp_path / "lora", raw=True)
    published, single = load_file(tmp_path / "lora" / ADAPTER_FILE), load_file(tmp_path / "lora" / SINGLE_FILE)
    assert published
    for name, tensor in published.items():
        assert name.startswith("base_model.model.")
        assert name.endswith((".lora_A.weight", ".lora_B.weight"))
        scaled = single[f"transformer.{name.removeprefix('base_model.model.')}"]
        factor = 2.0 if ".lora_B." in name else 1.0  # alpha 4, rank 2
        assert torch.equal(scaled, tensor * factor)
    assert any(name.startswith("base_model.model.single_transformer_blocks.0.attn.to_q.") for name in published)
    assert json.loads((tmp_path / "lora" / ADAPTER_CONFIG).read_text())["lora_alpha"] == 4.0
    with pytest.raises(UniWorldError, match="already exists"):
        export_editr1(first_epoch, tmp_path / "lora")
    assert read_lora(tmp_path / "lora" / SINGLE_FILE).scaled
    assert not read_lora(tmp_path / "lora").scaled
    assert {read_lora(tmp_path / "lora" / name).family for name in ("", SINGLE_FILE)} == {"UniWorld-V1"}
    # Nodes apply both with the same strength, as trained.
    network = layers_of(UniWorld.from_pretrained("tiny").dit.transformer)
    files = [open_lora(tmp_path / "lora" / name, network).products for name in ("", SINGLE_FILE)]
    assert len(files[0]) == len(files[1]) == len(published) // 2
    for layer, product in files[0].items():
        deltas = [one.scale * (one.up @ one.down) for one in (product, files[1][layer])]
        torch.testing.assert_close(deltas[0], deltas[1])
        torch.testing.assert_close(deltas[0], 2.0 * product.up @ product.down)


def test_without_a_trainable_group_nothing_changes_and_it_is_counted(
    tmp_path: Path, config_of: Configure, providers_of: Provide, rows: Rows
) -> None:
    for steps in (1, 2):  # it resumes, too
        config = config_of(f"run.steps={steps}", "advantage.filter=published", "advantage.min_std=0.9")
        assert train_editr1(config, tmp_path / "run", providers_of()).idle == 1
    assert [(row["trained"], row["loss"], row["updates"]) for row in rows(tmp_path / "run")] == [(0.0, None, 0)] * 2
    tensors = tensors_of(tmp_path / "run")
    assert not any(name.startswith("optimizer/") for name in tensors)
    trained = {name: one for name, one in tensors.items() if name.startswith("weights/") and "lora_B" in name}
    assert trained
    assert not any(one.any() for one in trained.values())


def test_failed_scores_mask_their_pictures_and_too_many_stop_the_run(
    tmp_path: Path, config_of: Configure, providers_of: Provide, rows: Rows, red_reward: Any
) -> None:
    train_editr1(config_of("run.steps=1", "loss.kl=0"), tmp_path / "one", providers_of(red_reward([1])))
    (row,) = rows(tmp_path / "one")
    assert row["loss"] is not None
    assert row["kl"] is None  # it has no weight, so nobody has computed it
    assert row["failed"] == 1
    assert row["trained"] == pytest.approx(5 / 6)
    with pytest.raises(RunFailed, match=r"red failed on 2 of the 6 pictures of epoch 0.*0\.25 allows: no judge"):
        train_editr1(config_of("run.steps=1"), tmp_path / "two", providers_of(red_reward([1, 4])))
    painted = sorted((tmp_path / "two" / "rollouts").rglob("*.safetensors"))
    assert len(painted) == 2
    before = [file.stat().st_mtime_ns for file in painted]
    train_editr1(config_of("run.steps=1"), tmp_path / "two", providers_of())
    assert [file.stat().st_mtime_ns for file in painted] == before  # the pictures were kept, only scored again
    assert rows(tmp_path / "two")[0]["failed"] == 0


def test_a_reward_that_is_gone_stops_the_epoch_early(
    tmp_path: Path, config_of: Configure, providers_of: Provide, red_reward: Any
) -> None:
    gone = red_reward(range(100))
    with (
        pytest.raises(RunFailed, match=r"red failed on 3 of the first 3 of the 6 pictures of epoch 0"),
        pytest.warns(UserWarning, match=r"red failed on 3 of the 3 pictures of group 0 in epoch 0: no judge\."),
    ):
        train_editr1(config_of("run.steps=1"), tmp_path / "run", providers_of(gone))
    assert gone.seen == 3
    assert len(list((tmp_path / "run" / "rollouts").rglob("*.safetensors"))) == 1
    # The same command scores the kept pictures and paints the others.
    back = red_reward()
    train_editr1(config_of("run.steps=1"), tmp_path / "run", providers_of(back))
    assert back.seen == 6


def unusable_after(items: int, red_reward: Any) -> Any:
    """A reward that scores this many pictures, and then none any more."""

    class Unusable(red_reward):
        def score(self, pictures: Any) -> Any:
            if self.seen >= items:
                raise UniWorldError("the token is rejected.")
            return super().score(pictures)

    return Unusable()


def test_a_reward_that_becomes_unusable_loses_no_epoch(
    tmp_path: Path, config_of: Configure, providers_of: Provide, rows: Rows, red_reward: Any
) -> None:
    config = config_of("run.steps=2", "run.save_every=10")
    with pytest.raises(RunFailed, match=r"the token is rejected\. The pictures are kept: run the same command again"):
        train_editr1(config, tmp_path / "run", providers_of(unusable_after(9, red_reward)))
    (first,) = rows(tmp_path / "run")
    back = red_reward()
    train_editr1(config, tmp_path / "run", providers_of(back))
    assert back.seen == 3  # the second group of the second epoch
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
    assert rows(tmp_path / "run")[0] == first


def test_pictures_of_other_settings_are_painted_again(
    tmp_path: Path, config_of: Configure, providers_of: Provide, red_reward: Any
) -> None:
    # Both start from the same policy. A run without a checkpoint may start again with other settings.
    full = ("policy.kind=full", "editr1.old=on_policy", "editr1.groups=1", "run.steps=1")
    with pytest.raises(RunFailed, match="the token is rejected"):
        train_editr1(config_of(*full), tmp_path / "run", providers_of(unusable_after(0, red_reward)))
    (file,) = (tmp_path / "run" / "rollouts").rglob("*.safetensors")
    before = load_file(file)["latents"]
    train_editr1(config_of(*full, "editr1.guidance=1.5"), tmp_path / "run", providers_of())
    assert not torch.equal(load_file(file)["latents"], before)


def test_a_watched_reward_is_recorded_and_not_trained_on(
    tmp_path: Path, config_of: Configure, rows: Rows, red_reward: Any
) -> None:
    class Blue(red_reward):
        asked = 0

        def score(self, items: Any) -> list[Any]:
            Blue.asked += 1
            return [RewardFailure("unseen") if index else 0.25 for index, _ in enumerate(items)]

    known = Providers(PROMPTS, {"red": lambda config: red_reward(), "blue": lambda config: Blue()})
    unwatched, watched = config_of("run.steps=1"), config_of("run.steps=1", "reward.watch=blue", "run.sheet_every=1")
    train_editr1(unwatched, tmp_path / "unwatched", known)
    train_editr1(watched, tmp_path / "watched", known)
    assert_equal(tmp_path / "unwatched", tmp_path / "watched")
    (alone,), (row,) = rows(tmp_path / "unwatched"), rows(tmp_path / "watched")
    assert row == alone | {"watched/blue": 0.25}  # the failures count in nothing
    assert Blue.asked == 2
    # A run that was killed after its rollouts finds these scores, too; and watching may change when a run resumes.
    (tmp_path / "watched" / "metrics.jsonl").unlink()
    shutil.rmtree(tmp_path / "watched" / "checkpoints")
    train_editr1(watched, tmp_path / "watched", known)
    assert Blue.asked == 2
    assert rows(tmp_path / "watched") == [row]
    train_editr1(config_of("run.steps=2"), tmp_path / "watched", known)
    assert "watched/blue" not in rows(tmp_path / "watched")[1]
    with pytest.raises(UniWorldError, match=r"reward\.watch is 'pleasant'; it must be one of red, blue"):
        train_editr1(config_of("reward.watch=pleasant"), tmp_path / "new", known)


def test_bad_pictures_are_replaced_and_too_many_stop_the_run(
    tmp_path: Path, config_of: Configure, providers_of: Provide, metadata: Path
) -> None:
    folder = Path(shutil.copytree(metadata.parent, tmp_path / "data"))
    (folder / "images" / "1.png").unlink()
    file = folder / metadata.name
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[2]["prompt"] = "Paint it. " * 50_000  # beyond the model's context
    file.write_text("\n".join(map(json.dumps, lines)))
    done = train_editr1(config_of(f"data.metadata={file}", "run.steps=2"), tmp_path / "run", providers_of())
    assert done.skipped == 2
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["key"].removeprefix("train_metadata.jsonl"): row["reason"] for row in skipped}
    assert "does not exist" in reasons["#2"]
    assert "tokens" in reasons["#3"]


def test_a_run_continues_with_repaired_data(
    tmp_path: Path, config_of: Configure, providers_of: Provide, metadata: Path
) -> None:
    folder = Path(shutil.copytree(metadata.parent, tmp_path / "data"))
    (folder / "images").rename(folder / "elsewhere")
    settings = (f"data.metadata={folder / metadata.name}", "run.steps=1")
    config = config_of(*settings, "data.bad_limit=0")
    with pytest.raises(RunFailed, match=r"2 samples are invalid; data\.bad_limit is 0.* or raise data\.bad_limit"):
        train_editr1(config, tmp_path / "run", providers_of())
    with pytest.raises(RunFailed, match=r"4 samples are invalid; too few are left\. .* Fix them, then"):
        train_editr1(config_of(*settings), tmp_path / "run", providers_of())
    (folder / "elsewhere").rename(folder / "images")
    assert train_editr1(config, tmp_path / "run", providers_of()).skipped == 0


def test_a_folder_of_another_run_is_refused(
    tmp_path: Path, first_epoch: Path, config_of: Configure, providers_of: Provide
) -> None:
    # No reward is opened before, as a judge takes minutes to load.
    unopened = Providers(PROMPTS, {"red": lambda config: pytest.fail("opened")})
    with pytest.raises(UniWorldError, match=r"another configuration: loss\.beta was 1\.0 and is now 0\.5"):
        train_editr1(config_of("loss.beta=0.5"), first_epoch, unopened)
    with pytest.raises(UniWorldError, match=r"The checkpoint folder none does not exist"):
        train_editr1(config_of("model.checkpoint=none"), tmp_path / "new", unopened)
    with pytest.raises(UniWorldError, match=r"reward\.name is 'pleasant'; it must be one of red"):
        train_editr1(config_of("reward.name=pleasant"), first_epoch, providers_of())
    with pytest.raises(UniWorldError, match=r"No linear layer .* ends in attn\.to_qq"):
        train_editr1(config_of('policy.targets=["attn.to_qq"]'), tmp_path / "new", providers_of())
    assert not (tmp_path / "new").exists()


def test_what_cannot_work_is_refused_before_the_model_opens(
    tmp_path: Path, config_of: Configure, capsys: pytest.CaptureFixture[str], metadata: Path
) -> None:
    kontext = tmp_path / "kontext"
    kontext.mkdir()
    (kontext / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    for settings, problem in (
        (["reward.name=logit"], "reward.model is not set"),
        (["reward.name=remote"], "reward.url is not set"),
        (["reward.name=openai", "reward.url=http://127.0.0.1:9"], "reward.model is not set"),
        (["data.metadata=", "data.shapes=add", "reward.name=oracle", "reward.watch=logit"], "reward.model is not set"),
        (["reward.name=oracle"], "only knows the world of shapes"),
        (
            ["reward.name=remote", "reward.url=http://a", "editr1.groups=5"],
            "There are 4 samples, and each epoch needs 5",
        ),
        (
            ["reward.name=remote", "reward.url=http://a", "policy.kind=full", f"model.checkpoint={kontext}"],
            "set policy.kind",
        ),
        (["reward.name=remote", "reward.url=http://a", "preserve.weight=1"], "no prompt is marked to be preserved"),
        (["preserve.kinds=add"], "data.shapes has no such tasks"),
        (["preserve.weight=1", "editr1.mean=published"], "set editr1.mean to 'epoch'"),
    ):
        config_of()
        chosen = [f"data.metadata={metadata}", *settings]
        command = ["train", str(tmp_path / "config.toml"), "--run", str(tmp_path / "run")]
        for more in (["--dry-run"], []):
            code = cli.main([*command, *more, *(part for one in chosen for part in ("--set", one))])
            assert code == 2
            assert problem in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_rewards_are_opened_by_name(config_of: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Providers(PROMPTS, REWARDS)
    for settings, problem in (
        (("reward.name=remote",), r"reward\.url is not set: the reward 'remote' needs the server's address"),
        (("reward.name=openai", "reward.url=http://127.0.0.1:9"), r"reward\.model is not set: the reward 'openai'"),
        (("reward.name=logit",), r"reward\.model is not set"),
        (("reward.name=remote", "reward.url=http://127.0.0.1:9", "reward.attempts=1"), "does not answer"),
        (('reward.name=["logit", "pleasant"]',), "'pleasant'; it must be one of logit, remote, openai"),
        (
            ("reward.name=openai", "reward.url=http://127.0.0.1:9", "reward.model=a", "reward.template=no.txt"),
            r"no\.txt",
        ),
    ):
        with pytest.raises(UniWorldError, match=problem):
            known.open_reward(config_of(*settings))
    monkeypatch.setattr("uniworld.training.editr1.reward.remote.OpenAIReward.check", lambda self: None)
    openai = ("reward.url=http://127.0.0.1:9", "reward.model=a")
    both = known.open_reward(config_of('reward.name=["openai", "openai"]', "reward.weights=[1, 3]", *openai))
    assert isinstance(both, WeightedReward)
    assert [share for _, share in both.parts] == [0.25, 0.75]
    with pytest.raises(
        UniWorldError, match=r"reward\.weights is \[1\.0\]; it must be one number above 0 for each of the 2"
    ):
        config_of('reward.name=["openai", "openai"]', "reward.weights=1")


def test_a_judge_in_the_process_is_a_reward(
    tmp_path: Path, config_of: Configure, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("run.steps=1", "reward.name=logit", "reward.model=tiny")
    train_editr1(config, tmp_path / "run", Providers(PROMPTS, REWARDS))
    (row,) = rows(tmp_path / "run")
    assert row["failed"] == 0
    assert 0 < row["reward"] < 1


def test_mastered_samples_are_retired_until_too_few_are_left(
    tmp_path: Path, config_of: Configure, providers_of: Provide, rows: Rows
) -> None:
    # Every group is flat and good by these limits, so that the four samples last for two epochs.
    limits = ("advantage.min_std=9", "advantage.max_mean=0", "advantage.retire=true")
    for steps in (1, 3):  # what is retired is saved, too
        config, left = config_of(*limits, f"run.steps={steps}"), steps > 2
        with pytest.raises(RunFailed, match="4 of the 4 samples are mastered") if left else nullcontext():
            train_editr1(config, tmp_path / "run", providers_of())
    assert [(row["painted"], row["mastered"]) for row in rows(tmp_path / "run")] == [(2, 2), (4, 4)]
    (first,) = [row for row in rows(tmp_path / "run") if row["step"] == 1]
    assert first["reward"] < first["top_75"] <= first["top_50"] <= first["top_25"] <= first["top_10"] == first["best"]


def test_prompts_to_preserve_are_not_retired(
    tmp_path: Path, metadata: Path, config_of: Configure, providers_of: Provide, rows: Rows
) -> None:
    marked = marked_to_preserve(metadata, tmp_path / "marked.jsonl")
    limits = ("advantage.min_std=9", "advantage.max_mean=0", "advantage.retire=true")
    config = config_of(f"data.metadata={marked}", "preserve.weight=1", "run.steps=3", *limits)
    train_editr1(config, tmp_path / "run", providers_of())
    assert [row["mastered"] for row in rows(tmp_path / "run")] == [2, 4, 4]


def test_settings_of_an_epoch_have_limits(config_of: Configure) -> None:
    for setting, problem in (
        ("editr1.eta=1.5", r"editr1\.eta is 1\.5; it must be from 0 to 1"),
        ("editr1.steps=100000", r"editr1\.steps is 100000; it must be from 1 to 1000"),
        ("editr1.groups=1000000", r"editr1\.groups is 1000000; it must be at most 1048576 / editr1\.group_size"),
    ):
        with pytest.raises(UniWorldError, match=problem):
            config_of("editr1.solver=ddim_sde", setting)


def test_a_damaged_rollout_is_named(
    tmp_path: Path, config_of: Configure, providers_of: Provide, red_reward: Any
) -> None:
    with pytest.raises(RunFailed):
        train_editr1(config_of("run.steps=1"), tmp_path / "run", providers_of(red_reward(range(6))))
    file = next((tmp_path / "run" / "rollouts").rglob("*.safetensors"))
    file.write_bytes(b"rubbish")
    with pytest.raises(RunFailed, match=r"is damaged .* delete it"):
        train_editr1(config_of("run.steps=1"), tmp_path / "run", providers_of())
