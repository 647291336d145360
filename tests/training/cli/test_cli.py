"""`uniworld train`, `data` and `eval`: exit codes, output streams, and that a user error never prints a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file
from uniworld.__main__ import main
from uniworld.training.cli import main as cli
from uniworld.training.config.file import config_from_dict, load_config, parse_toml, to_toml
from uniworld.training.config.settings import Config
from uniworld.training.publish import convert
from uniworld.training.run import loop
from uniworld.training.run.loop import TrainingResult
from uniworld.training.shapes.nano import nano
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import RunFailed
from uniworld.uniworld_core.loading.shipped import shipped_lora_folders, shipped_model

ROOT = Path(__file__).resolve().parents[3]
START = shipped_model("tiny").checkpoint
LAUNCH = f"""
import runpy, sys
runpy.run_path({str(ROOT / "tests" / "conftest.py")!r})
from uniworld.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `uniworld ...` in a temporary folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return command


@pytest.fixture
def config_file(tiny_config: Callable[..., Config], tmp_path: Path) -> Path:
    """The configuration file of a run of two steps: stage 2 on the tiny model and data."""
    file = tmp_path / "small.toml"
    file.write_text(to_toml(tiny_config("run.steps=2", "stage.parts=['denoise_projector']")), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two steps; tests only read it."""
    settings = (
        "model.checkpoint=tiny",
        "model.dtype=float32",
        f"data.list={tiny_data}",
        "data.area=4096",
        "run.device=cpu",
        "run.steps=2",
        "run.batch_size=1",
        "run.save_every=1",
        "run.validate_every=0",
    )
    folder = tmp_path_factory.mktemp("runs") / "trained"
    loop.train(load_config("stage1", settings), folder, progress=False)
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


# --- usage and exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [words for words in cli.COMMANDS], ids=" ".join)
def test_every_command_has_help(command: Command, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*words, "--help")
    assert stop.value.code == 0


@pytest.mark.parametrize("group", ["data", "eval"])
def test_a_group_lists_its_commands(command: Command, group: str) -> None:
    code, out, _ = command(group, "--help")
    assert code == 0
    assert all(" ".join(words) in out for words in cli.COMMANDS if words[0] == group)
    code, out, err = command(group)
    assert (code, out) == (2, "")
    assert f"uniworld {group} shapes" in err


def test_the_help_of_train_lists_its_subcommands(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("train", "--help")
    out = capsys.readouterr().out
    assert all(f"train {word}" in out for word in ("plot", "export", "merge", "nano"))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not deliver SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_or_interrupted_command_exits_with_1_and_a_sentence(
    tmp_path: Path, number: signal.Signals
) -> None:
    line = [sys.executable, "-c", LAUNCH, "data", "shapes", "out", "--count", "1000000"]
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not list((tmp_path / "out").glob("pictures/*/*.png")) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 1
    assert err.endswith("Interrupted.\n")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("data paint", "Unknown command 'data paint'"),
        ("train", "required: CONFIG"),
        ("train small.toml --color", "unrecognized arguments: --color. Run `uniworld train --help` for the options."),
        ("train nowhere.toml", "nowhere.toml cannot be read"),
        ("train stage1", "model.checkpoint is not set"),
        ("train small.toml --set run.stps=3", "did you mean run.steps?"),
        ("train small.toml --set run.steps", "section.key=value"),
        ("train small.toml --set run.steps=0", "run.steps is 0"),
        ("train plot nowhere", "has no metrics.jsonl"),
        ("train export nowhere out", "nowhere"),
        ("train merge tiny out", "two or more checkpoints"),
        ("train merge tiny nowhere out", "nowhere"),
        ("train merge tiny nano out", "only checkpoints of the same architecture can be merged"),
        ("train merge tiny tiny out --shares 1,x", "--shares is '1,x'; give numbers"),
        ("train merge tiny tiny out --shares 1", "There are 2 checkpoints, but the shares are 1.0"),
        ("train merge tiny tiny out --shares 1,-1", "give finite numbers of 0 or more"),
        (
            "convert nowhere out",
            "The folder 'nowhere' does not exist. Give a checkpoint folder, or the name of a shipped model: ",
        ),
        ("convert tiny out --seed 3", "--seed applies only to building a starting checkpoint"),
        ("train convert Qwen FLUX out", "is now `uniworld convert QWEN TARGET --flux FLUX`"),
        ("data check nowhere.txt", "cannot be read"),
        ("data shards nowhere.txt out", "cannot be read"),
        ("data cache small.toml", "data.cache is not set"),
        ("data shapes out --count 0", "--count: '0' is not a whole number from 1"),
        ("data shapes out --kinds fly", "choose some of"),
        ("eval shapes --checkpoint nowhere", "nowhere does not exist"),
        ("eval shapes --kinds fly", "choose some of"),
        ("eval shapes --lora nowhere.safetensors", "nowhere.safetensors"),
        ("eval shapes --lora nowhere.safetensors:nan", "strength is nan"),
        ("eval shapes --checkpoint TINY", "--flux is not given: give the folder, or the name of a shipped model"),
        ("eval shapes --checkpoint TINY --flux tiny", "--siglip is not given"),
    ],
)
def test_bad_usage_is_exit_code_2_and_a_sentence(command: Command, config_file: Path, line: str, words: str) -> None:
    tiny = str(shipped_model("tiny").checkpoint)  # type: ignore[union-attr]
    code, out, err = command(*line.replace("TINY", tiny).split())
    assert code == 2
    assert words in out + err


def test_a_failure_at_run_time_is_exit_code_1(
    command: Command, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> TrainingResult:
        raise RunFailed("The loss at step 7 is not finite.")

    monkeypatch.setattr(loop, "train", fail)
    assert command("train", config_file) == (1, "", "The loss at step 7 is not finite.\n")


@pytest.mark.parametrize("setting", ["data.list=absent.txt", "model.checkpoint=absent", "data.cache=absent"])
def test_unusable_data_or_models_are_exit_code_2(command: Command, config_file: Path, setting: str) -> None:
    code, out, err = command("train", config_file, "--set", setting)
    assert (code, out) == (2, "")
    assert "absent" in err


def test_an_unexpected_error_is_one_line_with_a_traceback_only_on_request(
    command: Command, config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> TrainingResult:
        raise RuntimeError("gone")

    monkeypatch.setattr(loop, "train", fail)
    code, _, err = command("train", config_file)
    assert (code, err) == (
        1,
        "uniworld failed: RuntimeError: gone. This is a bug of uniworld: run again with --debug and report it to its "
        "developers with the traceback.\n",
    )
    assert main(["train", str(config_file), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_is_exit_code_1_and_says_how_to_resume(
    command: Command, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_: TrainingResult(steps=7, loss=1.0, skipped=0, interrupted=True))
    code, out, err = command("train", config_file)
    assert (code, out) == (1, "")
    assert "Stopped after step 7 and saved a checkpoint; run the same command again to resume." in err


def test_only_rank_0_prints_and_errors_name_the_rank(
    command: Command, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(loop, "train", lambda *_: TrainingResult(steps=2, loss=1.0, skipped=0, interrupted=False))
    assert command("train", config_file) == (0, "", "")
    assert command("train", "nowhere.toml")[2].startswith("rank 1: ")


def test_every_settings_file_of_training_is_installed() -> None:
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    installed = {
        file
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for file in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    assert set((ROOT / "training").rglob("*.toml")) <= installed


def test_every_command_line_in_the_documentation_is_valid() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(
        r"(?:^|`)(?:torchrun .* -m )?uniworld ((?:train|convert|data|eval|lora|reward) [^`\n]*)",
        text,
        flags=re.MULTILINE,
    )
    assert len(lines) > 12
    for line in lines:
        argv = line.partition(" > ")[0].partition(" # ")[0].replace("...", "").split()
        words, found = cli._find(argv)
        cli._parser(words, found).parse_args(argv[len(words) :])
    assert {cli._find(line.split())[0] for line in lines} == set(cli.COMMANDS)


# --- training ---------------------------------------------------------------------------------------------------------


def test_numbers_of_steps_and_epochs_agree_with_their_nouns(
    command: Command, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uniworld.training.editr1 import loop as editr1_loop

    rewards = ("train", "nano_editr1", "--folder", tmp_path / "run")
    for number, steps, epochs in (
        (1, "Finished 1 step, 1 bad sample skipped", "Finished 1 epoch, 1 bad sample replaced"),
        (2, "Finished 2 steps, 2 bad samples skipped", "Finished 2 epochs, 2 bad samples replaced"),
    ):
        ended = TrainingResult(number, 1.0, number, False)
        rewarded = editr1_loop.EditR1Result(number, 1.0, number, number, False)
        monkeypatch.setattr(loop, "train", lambda *_, ended=ended: ended)
        monkeypatch.setattr(editr1_loop, "train_editr1", lambda *_, ended=rewarded: ended)
        assert f"{steps} (see skipped.jsonl). Export" in command("train", config_file)[2]
        err = command(*rewards)[2]
        assert f"{epochs} (see skipped.jsonl). Export" in err
        assert f"in {number} epoch{'s' * (number > 1)}, which changed" in err


def test_a_dry_run_prints_the_summary_and_writes_nothing(command: Command, config_file: Path, tmp_path: Path) -> None:
    code, out, _ = command("train", config_file, "--set", "optimizer.lr=0.5", "--dry-run")
    assert code == 0
    assert config_from_dict(parse_toml(out, "the dry run")).optimizer.lr == 0.5
    for words in ("projectors.denoise_projector.0.weight", "Total:", "8 samples", "64 x 64: 7"):
        assert words in out
    assert [file.name for file in tmp_path.iterdir()] == ["small.toml"]


def test_a_run_trains_reports_and_resumes(command: Command, config_file: Path, tmp_path: Path) -> None:
    code, out, err = command("train", config_file)
    assert (code, out) == (0, "")
    assert "Finished 2 steps. Export a checkpoint: uniworld train export runs/small FOLDER" in err
    assert command("train", config_file, "--set", "run.steps=3")[0] == 0
    metrics = (tmp_path / "runs" / "small" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]
    code, _, err = command("train", config_file, "--set", "run.seed=6")
    assert code == 2
    assert "run.seed was 5 and is now 6" in err


def test_curves_are_written_into_the_run_or_to_a_given_file(command: Command, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra")
    assert command("train", "plot", trained)[:2] == (0, f"{trained / 'curves.png'}\n")
    assert command("train", "plot", trained, trained, "--to", "both.png")[:2] == (0, "both.png\n")
    for file in (trained / "curves.png", tmp_path / "both.png"):
        with Image.open(file) as picture:
            assert picture.format == "PNG"


def test_an_exported_checkpoint_differs_only_in_what_trained(command: Command, trained: Path) -> None:
    assert command("train", "export", trained, "out")[:2] == (0, "out\n")
    before, after = tensors_of(START), tensors_of(Path("out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "denoise_projector" in name}
    UniWorld.from_pretrained("out", dtype=torch.float32).route("Paint a dog.")


def test_the_ema_is_exported_and_raw_weights_of_any_saved_step_on_request(command: Command, trained: Path) -> None:
    for name, options in (("ema", ()), ("raw", ("--raw",)), ("first", ("--raw", "--step", 1))):
        assert command("train", "export", trained, name, *options)[0] == 0
    ema, raw, first = (tensors_of(Path(name)) for name in ("ema", "raw", "first"))
    bias = "denoise_tower.denoise_projector.2.bias"
    assert not torch.equal(raw[bias], ema[bias])
    assert not torch.equal(raw[bias], first[bias])
    code, _, err = command("train", "export", trained, "other", "--step", 7)
    assert code == 2
    assert "has no checkpoint step-00000007: choose one of step-00000001, step-00000002" in err


def test_a_damaged_checkpoint_is_not_exported(command: Command, trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    file = next((copy / "checkpoints" / "step-00000002").glob("*.distcp"))
    *whole, last = file.read_bytes()
    file.write_bytes(bytes([*whole, last ^ 1]))
    code, _, err = command("train", "export", copy, "out")
    assert code == 2
    assert str(file) in err
    assert not Path("out").exists()


def test_an_export_without_the_starting_checkpoint_names_its_path(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    config = (copy / "config.toml").read_text(encoding="utf-8").replace('checkpoint = "tiny"', 'checkpoint = "gone"')
    (copy / "config.toml").write_text(config, encoding="utf-8")
    code, _, err = command("train", "export", copy, "out")
    assert code == 2
    assert "started from gone, which does not exist" in err


def test_untrained_weights_from_model_start_are_exported(command: Command, config_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = "denoise_tower.siglip_projector.2.bias"
    given = {name: tensors_of(START)[name] + 1.0}
    save_file(given, tmp_path / "given.safetensors")
    settings = ("--set", "model.start=given.safetensors", "--set", "run.steps=1")
    assert command("train", config_file, *settings, "--run", "r")[0] == 0
    assert command("train", "export", "r", "out")[0] == 0
    assert torch.equal(tensors_of(Path("out"))[name], given[name])


def test_a_starting_checkpoint_is_built_from_two_base_models(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(convert, "convert", lambda *arguments: calls.append(arguments))
    Path("Qwen").mkdir()
    Path("Qwen/config.json").write_text('{"model_type": "qwen2_5_vl"}')
    line = "convert Qwen start --flux FLUX --redux r --siglip s --task-head t --seed 3 --storage bfloat16"
    assert command(*line.split())[:2] == (0, "start\n")
    models = convert.BaseModels(*map(Path, ("Qwen", "FLUX", "r", "s", "t")))
    assert calls == [(models, Path("start"), 3, torch.bfloat16)]


def test_a_checkpoint_is_converted(command: Command) -> None:
    code, out, err = command("convert", "tiny", "models", "--to", "comfy", "--name", "tiny", "--storage", "float16")
    assert (code, out) == (0, "models\n"), err
    assert Path("models/diffusion_models/tiny.safetensors").is_file()
    assert "diffusion_models/tiny.safetensors: Load Diffusion Model\n" in err
    files = {line.partition(": Load")[0] for line in err.splitlines() if ".safetensors: " in line}
    assert {file.partition(": ")[0] for file in files} == {
        path.relative_to("models").as_posix() for path in Path("models").rglob("*.safetensors")
    }
    code, _, err = command("convert", "tiny", "models", "--to", "comfy", "--name", "tiny")
    assert code == 2
    assert "already exists" in err
    assert "a prefix of a file name" in command("convert", "tiny", "out", "--to", "comfy", "--name", "../tiny")[2]


def test_nano_is_trained_into_the_given_folder(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def train_nano(folder: Path, quick: bool, device: str, progress: Callable[..., None]) -> Path:
        progress("vae", 3, 7, {"loss": 0.5})
        progress("vlm", 1, 2, {})
        calls.append((folder, quick, device))
        return folder / "nano"

    monkeypatch.setattr(nano, "train_nano", train_nano)
    assert command("train", "nano")[:2] == (0, f"{Path('runs/nano/nano')}\n")
    assert command("train", "nano", "--quick", "--folder", "n", "--device", "cpu")[0] == 0
    assert calls == [(Path("runs/nano"), False, "auto"), (Path("n"), True, "cpu")]


@pytest.mark.slow
def test_torchrun_with_two_processes_gives_the_same_loss(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text(LAUNCH, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "launch.py"]

    def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*start, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    cached = launch("data", "cache", "small.toml", "--set", "data.cache=cache")
    assert (cached.returncode, cached.stdout) == (0, "cache\n"), cached.stderr
    done = launch("train", "small.toml", "--folder", "together", "--set", "data.cache=cache")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Finished 2 steps.") == 1
    alone = loop.train(load_config(config_file), tmp_path / "alone", progress=False)
    lines = (tmp_path / "together" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["loss"] == pytest.approx(alone.loss, rel=1e-5)


def test_torchrun_does_not_parse_any_option_of_ours(command: Command) -> None:
    from torch.distributed.run import get_args_parser

    for words, found in cli.COMMANDS.items():
        options = [name for action in cli._parser(words, found)._actions for name in action.option_strings]
        line = [*words, *(name for name in options if name not in ("--run", "-h", "--help"))]
        taken = get_args_parser().parse_args(["--nproc-per-node", "2", "-m", "uniworld", *line])
        assert taken.training_script_args == line


# --- data -------------------------------------------------------------------------------------------------------------


def test_all_problems_of_broken_data_are_reported_with_exit_code_2(
    command: Command, tiny_data: Path, tmp_path: Path
) -> None:
    assert command("data", "check", tiny_data)[0] == 0
    lines = tiny_data.read_text(encoding="utf-8") + "nowhere,nothing.json,true\none column\n"
    (tmp_path / "broken.txt").write_text(lines, encoding="utf-8")
    code, out, _ = command("data", "check", "broken.txt")
    assert code == 2
    assert "nothing.json" in out
    assert "columns" in out
    code, out, _ = command("data", "check", "broken.txt", "--json")
    assert code == 2
    assert len(json.loads(out)["problems"]) == 2


def test_data_is_packed_into_shards_that_can_be_checked(command: Command, tiny_data: Path) -> None:
    pytest.importorskip("webdataset", reason="shards are an extra")
    assert command("data", "shards", tiny_data, "shards", "--per-shard", "3")[:2] == (0, "shards\n")
    code, out, _ = command("data", "check", "shards")
    assert (code, out.splitlines()[0]) == (0, "8 of 8 paintings are good (8 weighted).")
    assert out.endswith("\nNo problems.\n")
    shard = sorted(Path("shards").glob("*.tar"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    code, out, _ = command("data", "check", "shards")
    assert code == 2
    assert shard.name in out


def test_a_run_from_the_cache_has_the_losses_of_a_run_without(
    command: Command, config_file: Path, tmp_path: Path
) -> None:
    cached = ("--set", "data.cache=cache")
    assert command("data", "cache", config_file, *cached)[:2] == (0, "cache\n")
    assert command("train", config_file, *cached, "--run", "with")[0] == 0
    assert command("train", config_file, "--run", "without")[0] == 0
    one, other = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("with", "without")
    )
    assert one == pytest.approx(other, rel=1e-6)


def test_generated_shapes_pass_the_data_check(command: Command) -> None:
    assert command("data", "shapes", "drawn", "--count", 12, "--side", 64, "--kinds", "remove,text_to_image")[:2] == (
        0,
        f"{Path('drawn/data.txt')}\n",
    )
    code, out, _ = command("data", "check", "drawn/data.txt", "--area", 64 * 64)
    assert code == 0
    assert "painted at 64x64: 12" in out


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_an_evaluation_prints_a_table_and_writes_scores_and_pictures(command: Command, tmp_path: Path) -> None:
    options = ("--checkpoint", "tiny", "--count", 2, "--kinds", "recolour,question", "--steps", 1)
    code, out, _ = command("eval", "shapes", *options, "--json", "a/numbers.json", "--sheet", "a/sheet.png")
    assert code == 0
    assert "recolour" in out
    numbers = json.loads((tmp_path / "a" / "numbers.json").read_text(encoding="utf-8"))
    assert [row["kind"] for row in numbers["kinds"]] == ["recolour", "question"]
    assert "loras" not in numbers["settings"]
    with Image.open(tmp_path / "a" / "sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_an_evaluation_with_a_lora_scores_and_names_it(command: Command, tmp_path: Path) -> None:
    lora = shipped_lora_folders()[0] / "uniworld_nano_negative.safetensors"
    options = ("--count", 1, "--kinds", "recolour", "--steps", 1, "--json", "numbers.json", "--sheet")
    assert command("eval", "shapes", *options, "with.png", "--lora", f"{lora}:0.5", "--lora", f"{lora}:0.5")[0] == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["settings"]["loras"] == [f"{lora}:0.5"] * 2
    assert command("eval", "shapes", *options, "once.png", "--lora", lora)[0] == 0
    assert command("eval", "shapes", *options, "without.png")[0] == 0
    with_lora, once, without = (Image.open(f"{name}.png").convert("L") for name in ("with", "once", "without"))
    assert ImageChops.difference(with_lora, once).getextrema()[1] <= 2  # two half LoRAs are one
    assert ImageChops.difference(with_lora, without).getextrema()[1] > 32
