"""Configurations: presets, files, overrides, and the errors of invalid ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from uniworld.training.config.editr1 import EditR1Config
from uniworld.training.config.file import config_from_dict, load_any, load_config, parse_toml, preset_names, to_toml
from uniworld.training.config.settings import Config
from uniworld.uniworld_core.errors import UniWorldError


class TestPresets:
    def test_hold_the_published_first_stage(self) -> None:
        config = load_config("stage1")
        assert config.stage.parts == ("denoise_projector",)
        assert not config.stage.use_siglip
        assert (config.stage.guidance, config.stage.t5_drop, config.stage.weight) == (1.0, 1.0, "logarithmic")
        optimizer = config.optimizer
        assert (optimizer.name, optimizer.lr, optimizer.betas, optimizer.eps) == ("adamw", 1e-3, (0.9, 0.99), 1e-8)
        assert (optimizer.weight_decay, optimizer.schedule, optimizer.clip) == (0.0, "constant", 1.0)
        assert (config.ema.decay, config.run.seed, config.run.steps) == (0.999, 203, 500_000)
        assert (config.data.area, config.run.save_every, config.run.validate_every) == (512 * 512, 2000, 1000)
        assert config.model.dtype == "auto"  # bfloat16, as published, wherever it is fast

    def test_hold_the_published_second_stage(self) -> None:
        config = load_config("stage2")
        assert config.stage.parts == ("denoise_projector", "siglip_projector", "image_branch")
        assert config.stage.use_siglip
        assert config.stage.checkpointing
        assert (config.optimizer.lr, config.optimizer.schedule, config.optimizer.warmup) == (
            1e-6,
            "constant_with_warmup",
            5000,
        )

    @pytest.mark.parametrize("name", preset_names())
    def test_lack_only_the_model_and_the_data(self, name: str) -> None:
        if isinstance(load_any(name), EditR1Config):
            given = ["model.checkpoint=tiny", "data.metadata=data.jsonl", "reward.name=any"]
            load_any(name, given if not name.startswith("nano_editr1") else []).check_complete()
            with pytest.raises(ValueError, match="configures a run with rewards"):
                load_config(name)
            return
        with pytest.raises(ValueError, match=r"model\.checkpoint is not set"):
            load_config(name).check_complete()
        with pytest.raises(ValueError, match=r"Neither data\.list nor data\.shards"):
            load_config(name, ["model.checkpoint=tiny"]).check_complete()
        load_config(name, ["model.checkpoint=tiny", "data.list=data.txt"]).check_complete()


class TestText:
    def test_gives_the_same_configuration_again(self) -> None:
        settings = ['model.checkpoint=C:\\models\\"mine"\x7f\n', "model.start=[\"a b\", 'c']", "optimizer.eps=1e-12"]
        prompts = 'validation.prompts=[{prompt = "A cat é 猫."}, {prompt = "Repair it.", images = ["a.png", "b.png"]}]'
        config = load_config("stage2", [*settings, prompts])
        assert config.validation.prompts[1].images == ("a.png", "b.png")
        assert config_from_dict(parse_toml(to_toml(config), "text")) == config

    def test_of_the_defaults_contains_every_key(self) -> None:
        assert config_from_dict(parse_toml(to_toml(Config()), "text")) == Config()

    def test_in_a_file_is_read_from_its_path(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text("[run]\nsteps = 7\n", encoding="utf-8")
        assert load_config(file).run.steps == 7
        assert load_config(str(file), ["run.seed=3"]).run.seed == 3


class TestOverrides:
    def test_take_values_as_toml_has_them_and_text_without_quotes(self) -> None:
        config = load_config(
            "stage1",
            ["data.list=/a folder/list.txt", "optimizer.lr=1", "stage.parts=dit", "optimizer.betas=[0.5, 0.75]"],
        )
        assert config.data.list == "/a folder/list.txt"
        assert config.optimizer.lr == 1.0
        assert config.stage.parts == ("dit",)
        assert config.optimizer.betas == (0.5, 0.75)

    def test_keep_a_string_that_looks_like_a_number(self) -> None:
        assert load_config("stage1", ["model.checkpoint=2024"]).model.checkpoint == "2024"

    @pytest.mark.parametrize("written", ["steps=1", "run.steps", "=", "run=3"])
    def test_of_another_form_are_rejected(self, written: str) -> None:
        with pytest.raises(ValueError, match=r"not of the form section\.key=value"):
            load_config("stage1", [written])


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("run.stpes=1", r"run\.steps"),
            ("optimiser.lr=1", "optimizer"),
            ("optimizer.learning_rate=1", "valid keys are"),
        ],
    )
    def test_are_errors_that_suggest_the_closest_key(self, written: str, meant: str) -> None:
        with pytest.raises(ValueError, match=meant):
            load_config("stage1", [written])

    def test_in_a_file_name_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text("[run]\nstep = 7\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"mine\.toml has the unknown key run\.step: did you mean run\.steps\?"):
            load_config(file)


class TestValues:
    @pytest.mark.parametrize(
        ("written", "sentence"),
        [
            ("run.steps=0", "run.steps is 0; it must be 1 or more."),
            ("run.steps=1.5", "it must be an integer."),
            ("run.steps=true", "it must be an integer."),
            ("run.tensorboard=1", "it must be true or false."),
            ("optimizer.lr=fast", "it must be a number."),
            ("optimizer.lr=nan", "optimizer.lr is nan; it must be a number above 0."),
            ("optimizer.lr=inf", "optimizer.lr is inf"),
            ("optimizer.betas=[0.9]", "it must be a list of 2 values."),
            ("optimizer.betas=[0.9, 1.0]", "two numbers from 0 to below 1"),
            ("optimizer.name=sgd", "it must be one of adamw, prodigy, muon."),
            ("optimizer.warmup=5", "has no warm-up"),
            ("stage.parts=[]", "at least one of denoise_projector"),
            ("stage.parts=[1]", "it must be a list, such as"),
            ("stage.parts=vlm", "it must be one of denoise_projector"),
            ("stage.parts=siglip_projector", "stage.use_siglip is false"),
            ("stage.weight=cubic", "it must be one of logarithmic"),
            ("data.ratios=wide", "it must be one of any_11ratio"),
            ("data.shards=folder", "are both set; set only one."),
            ("ema.decay=1.0", "a number from 0 to below 1"),
            ("validation.size=100", "a multiple of 16"),
            ("validation.prompts=[{images = []}]", "is missing a key"),
            ("validation.prompts=[{prompt = 1}]", "it must be a string."),
            ("validation=3", "not of the form"),
        ],
    )
    def test_out_of_range_or_of_the_wrong_type_are_user_errors(self, written: str, sentence: str) -> None:
        with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
            load_config("stage1", ["data.list=a.txt", written])
        assert str(caught.value).endswith((".", "?")), caught.value

    def test_from_the_command_line_are_not_reported_as_the_files(self) -> None:
        with pytest.raises(ValueError, match=r"^optimizer\.lr in --set is 'fast'"):
            load_config("stage1", ["optimizer.lr=fast"])

    def test_of_lists_may_be_empty_and_say_how_lists_are_written(self) -> None:
        config = load_any("nano_editr1", ["data.shapes=", "reward.weights=[2]", "reward.watch=oracle"])
        assert isinstance(config, EditR1Config)
        assert (config.data.shapes, config.reward.weights, config.reward.watch) == ((), (2.0,), ("oracle",))
        for written, sentence in (
            ("reward.weights=2,1", "reward.weights in --set is 2,1; write a list as [2, 1]."),
            ("reward.weights=1e-3, .5", "write a list as [0.001, 0.5]."),
            ("reward.answers=0,1", 'write a list as ["0", "1"].'),
            ("reward.weights=a,b", "write a list as [1.0, 0.5]."),
            ("data.shapes=add,remove", 'data.shapes in --set is add,remove; write a list as ["add", "remove"].'),
            ("data.shapes=[add, remove]", 'write a list as ["add", "remove"].'),
            ("reward.weights=two", "reward.weights in --set is 'two'; it must be a list, such as [1.0, 0.5]."),
            ("data.shapes=[1]", """data.shapes in --set is [1]; it must be a list, such as ["a", "b"]."""),
        ):
            with pytest.raises(UniWorldError, match=re.escape(sentence)):
                load_any("nano_editr1", [written])

    @pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "1" * 5000])
    def test_that_python_cannot_parse_name_the_file(self, tmp_path: Path, value: str) -> None:
        file = tmp_path / "mine.toml"
        file.write_text(f"[run]\nsteps = {value}\n", encoding="utf-8")
        with pytest.raises(UniWorldError, match=r"^\S+mine\.toml is (not TOML|nested too deep)"):
            load_config(file)

    @pytest.mark.parametrize(
        ("key", "digits"), [("optimizer.lr", 400), ("ema.decay", 400), ("optimizer.lr", 5000), ("run.steps", 5000)]
    )
    def test_with_too_many_digits_are_short_errors(self, key: str, digits: int) -> None:
        with pytest.raises(UniWorldError, match=rf"^{key} in --set is '?1+\.\.\..*; it must be a") as found:
            load_any("stage1", [f"{key}={'1' * digits}"])
        assert len(str(found.value)) < 200

    def test_that_are_not_toml_name_the_line(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text("[run]\nsteps = \n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"mine\.toml is not TOML: .*line 2"):
            load_config(file)

    def test_of_a_missing_file_name_the_presets(self) -> None:
        with pytest.raises(ValueError, match=r"stage3 cannot be read .* stage1 or stage2"):
            load_config("stage3")

    def test_in_place_of_a_table_are_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="run in the configuration is 3; it must be a table"):
            config_from_dict({"run": 3})
        file = tmp_path / "run.toml"
        file.write_text("run = 5\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"run in .* is 5; it must be a table"):
            load_config(file, ["run.steps=3"])


class TestRewards:
    def test_a_table_editr1_makes_a_run_with_rewards(self, tmp_path: Path) -> None:
        file = tmp_path / "config.toml"
        file.write_text("[editr1]\ngroups = 3\n", encoding="utf-8")
        config = load_any(file, ["loss.kl=0.5"])
        assert isinstance(config, EditR1Config)
        assert (config.editr1.groups, config.loss.kl) == (3, 0.5)
        file.write_text(to_toml(config), encoding="utf-8")
        assert load_any(file) == config

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("editr1.times=9", r"editr1\.times is 9; it must be at most editr1\.steps = 6"),
            ("editr1.group_size=1", r"editr1\.group_size is 1; it must be 2 or more"),
            ("editr1.solver=dpm9", r"editr1\.solver is 'dpm9'; it must be one of"),
            ("advantage.filter=mine", r"advantage\.filter is 'mine'; it must be one of published, paper, none"),
            ("loss.beta=0", r"loss\.beta is 0\.0; it must be a number above 0"),
            ("policy.kind=half", r"policy\.kind is 'half'; it must be one of lora, full"),
            ("reward.max_failed=2", r"reward\.max_failed is 2\.0; it must be from 0 to 1"),
            ("data.list=list.txt", r"data\.list and data\.shapes are both set; set only one"),
            ("stage.parts=dit", "unknown key stage"),
        ],
    )
    def test_invalid_settings_are_named(self, setting: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_any("nano_editr1", [setting])

    def test_model_data_and_reward_must_be_set(self, tmp_path: Path) -> None:
        given: list[str] = []
        for missing, value in (
            ("model.checkpoint is not set", "model.checkpoint=tiny"),
            ("None of data.metadata, data.list and data.shapes is set", "data.metadata=data.jsonl"),
            ("reward.name is not set", "reward.name=any"),
        ):
            with pytest.raises(ValueError, match=missing):
                load_any("editr1_uniworld", given).check_complete()
            given.append(value)
        load_any("editr1_uniworld", given).check_complete()
