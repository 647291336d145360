"""`uniworld lora`: what it prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from uniworld.training.cli import main as cli
from uniworld.uniworld_core.loading.shipped import shipped_lora_folders

LORA = shipped_lora_folders()[0] / "uniworld_nano_negative.safetensors"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["lora", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_inspect_shows_rank_alpha_and_the_modules_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", LORA, "--model", "nano", "--alpha", 8)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert lines["modules"] == "32 in BF16, names of diffusers (transformer.)"
    assert (lines["rank"], lines["alpha"], lines["scale"][0]) == ("4", "8, from the argument", "2")
    assert lines["ComfyUI"] == lines["diffusers"] == "applies 0.5 of that: set strength 2 there, or convert it"
    assert lines["model"].startswith("all 32 modules fit nano")
    assert "give it with --alpha" in run(capsys, "inspect", LORA)[1]


def test_convert_writes_the_scale_into_the_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "a.safetensors"
    code, out, err = run(capsys, "convert", LORA, target, "--alpha", 8)
    assert (code, out) == (0, f"{target}\n")
    assert "Scale 2 is in the weights" in err
    before, after = load_file(LORA), load_file(target)
    name = next(name for name in before if "lora_B" in name)
    assert float((after[name] - 2 * before[name]).abs().max()) == 0


def test_a_converted_file_says_that_the_scale_is_in_the_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    run(capsys, "convert", LORA, once, "--alpha", 8)
    out = run(capsys, "inspect", once)[1]
    assert "alpha      4, from the rank, as the scale is in the weights\nscale      1," in out
    assert "--alpha" not in out
    for arguments in (("inspect", once), ("convert", once, twice)):
        code, _, err = run(capsys, *arguments, "--alpha", 8)
        assert code == 2
        assert "alpha is 8, and" in err
        assert "has the scale in its weights already" in err
    assert not twice.exists()
    # Without alpha, another conversion keeps the strength.
    assert run(capsys, "convert", once, twice)[0] == 0
    first, second = load_file(once), load_file(twice)
    assert all(float((first[name] - second[name]).abs().max()) == 0 for name in first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "none.safetensors"), "none.safetensors does not exist"),
        (("inspect", LORA, "--model", "tiny"), "does not fit the model: 10 of 32 modules"),
        (("inspect", LORA, "--model", "none"), "The checkpoint folder none does not exist"),
        (("inspect", LORA, "--alpha", "nan"), "--alpha: 'nan' is not a number"),
        (("inspect", LORA, "--alpha", "0"), "--alpha is 0"),
        (("convert", LORA, "a.pt"), "does not end in .safetensors"),
        (("convert", LORA, "a.safetensors", "--model", "tiny"), "does not fit the model"),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []
