"""Folders of FLUX.1 Kontext that are incomplete, damaged, or of another model: one error that names the part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.backbones.flux_latents import FLUX_SHIFT
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families.kontext.folder import COMPONENTS
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER
from uniworld.uniworld_core.sampling.scheduler_file import read_shift

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def change(file: Path, **values: Any) -> None:
    """Change keys of a JSON file; None deletes one."""
    changed = json.loads(file.read_text(encoding="utf-8")) | values
    text = json.dumps({key: value for key, value in changed.items() if value is not None})
    file.unlink()
    file.write_text(text, encoding="utf-8")


def refused(folder: Path, said: str) -> None:
    with pytest.raises(UniWorldError, match=said):
        UniWorld.from_pretrained(folder)


class TestParts:
    @pytest.mark.parametrize("part", COMPONENTS)
    def test_a_missing_one_is_named(self, kontext_copy: Path, part: str) -> None:
        shutil.rmtree(kontext_copy / part)
        refused(kontext_copy, f"Kontext has no {part}/, which FLUX.1 Kontext needs")

    def test_all_missing_ones_are_named_at_once(self, kontext_copy: Path) -> None:
        for part in ("vae", "tokenizer_2"):
            shutil.rmtree(kontext_copy / part)
        refused(kontext_copy, "has no vae/, tokenizer_2/, which")

    @pytest.mark.parametrize(
        ("file", "said"),
        [
            ("transformer/config.json", r"transformer.config\.json does not exist"),
            (WEIGHTS, r"transformer holds no weights"),
            ("text_encoder_2/model.safetensors", r"text_encoder_2 holds no weights"),
            ("scheduler/scheduler_config.json", r"scheduler_config\.json does not exist"),
        ],
    )
    def test_a_missing_file_is_named(self, kontext_copy: Path, file: str, said: str) -> None:
        (kontext_copy / file).unlink()
        refused(kontext_copy, said)

    @pytest.mark.parametrize(
        ("missing", "said"), [(True, "missing: proj_out.bias"), (False, "unknown: proj_out.scale")]
    )
    def test_tensors_are_strict(self, kontext_copy: Path, missing: bool, said: str) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(kontext_copy / WEIGHTS).items()}
        if missing:
            del tensors["proj_out.bias"]
        else:
            tensors["proj_out.scale"] = torch.ones(2)
        (kontext_copy / WEIGHTS).unlink()
        save_file(tensors, kontext_copy / WEIGHTS)
        refused(kontext_copy, said)

    def test_the_transformer_may_be_in_shards(self, kontext_folder: Path, kontext_copy: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(kontext_copy / WEIGHTS).items()}
        (kontext_copy / WEIGHTS).unlink()
        names = sorted(tensors)
        places = {}
        for number, half in enumerate((names[::2], names[1::2]), 1):
            file = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
            save_file({name: tensors[name] for name in half}, kontext_copy / "transformer" / file)
            places |= dict.fromkeys(half, file)
        index = kontext_copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
        whole, split = (UniWorld.from_pretrained(one, dtype=torch.float32) for one in (kontext_folder, kontext_copy))
        for (name, one), other in zip(whole.dit.state_dict().items(), split.dit.state_dict().values()):
            assert torch.equal(one, other), name


class TestOtherModels:
    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"in_channels": 384, "out_channels": 64}, "has in_channels 384 .*such as FLUX.1 Fill"),
            ({"_class_name": "QwenImageTransformer2DModel"}, "'QwenImageTransformer2DModel', expected 'FluxTransf"),
            ({"num_layers": 10**9}, "num_layers 1000000000, expected a whole number"),
            ({"num_layers": 100}, "asks for 100 layers"),
            ({"axes_dims_rope": [4, 6, 8]}, "must be even and add up"),
            ({"joint_attention_dim": 10}, "context_embedder.weight"),
        ],
    )
    def test_the_transformer_of_another(self, kontext_copy: Path, values: dict[str, Any], said: str) -> None:
        change(kontext_copy / "transformer" / "config.json", **values)
        refused(kontext_copy, said)

    def test_text_encoders_of_another(self, kontext_copy: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(kontext_copy / WEIGHTS).items()}
        tensors["context_embedder.weight"] = tensors["context_embedder.weight"][:, :10].clone()
        (kontext_copy / WEIGHTS).unlink()
        save_file(tensors, kontext_copy / WEIGHTS)
        change(kontext_copy / "transformer" / "config.json", joint_attention_dim=10)
        refused(kontext_copy, r"takes text of joint_attention_dim 10, and the folder's T5 gives \d+")

    @pytest.mark.parametrize("kind", ["FluxFillPipeline", "FluxPipeline", "StableDiffusionPipeline", 3, None])
    def test_another_pipeline(self, kontext_copy: Path, kind: Any) -> None:
        change(kontext_copy / "model_index.json", _class_name=kind)
        refused(kontext_copy, r"model_index\.json has _class_name .*not a known model family .*FLUX\.1 Kontext")

    def test_the_flux_companion_of_uniworld(self) -> None:
        refused(SHIPPED_FOLDER / "tiny" / "flux", "'FluxPipeline', which is not a known model family.*base models")

    @pytest.mark.parametrize("what", ["flux", "siglip"])
    def test_it_takes_no_companions(self, kontext_folder: Path, what: str) -> None:
        with pytest.raises(UniWorldError, match=f"FLUX.1 Kontext does not use a {what} folder"):
            UniWorld.from_pretrained(kontext_folder, **{what: "tiny"})

    def test_what_it_cannot_do_is_one_sentence(self, kontext_folder: Path) -> None:
        model = UniWorld.from_pretrained(kontext_folder)
        with pytest.raises(UniWorldError, match=r"^FLUX\.1 Kontext does not answer in text"):
            model.understand("What is this?")
        with pytest.raises(UniWorldError, match=r"^FLUX\.1 Kontext has no routing head"):
            model.route("What is this?")


class TestScheduler:
    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"_class_name": "DDIMScheduler"}, "'DDIMScheduler', expected 'FlowMatch"),
            ({"use_dynamic_shifting": False}, "use_dynamic_shifting False, expected True"),
            ({"use_dynamic_shifting": None}, "no 'use_dynamic_shifting'"),
            ({"base_shift": 1e9}, "base_shift 1000000000.0, expected a number"),
            ({"max_shift": "1"}, "max_shift '1'"),
            ({"base_image_seq_len": 4096}, "base_image_seq_len 4096 and max_image_seq_len 4096"),
            ({"max_image_seq_len": 0}, "max_image_seq_len 0, expected a whole number"),
            ({"use_karras_sigmas": True}, "use_karras_sigmas True, expected False"),
            ({"time_shift_type": "linear"}, "time_shift_type 'linear', expected one of exponential"),
            ({"shift_terminal": 1.0}, "shift_terminal 1.0"),
        ],
    )
    def test_noise_levels_of_another_kind(self, kontext_copy: Path, values: dict[str, Any], said: str) -> None:
        change(kontext_copy / "scheduler" / "scheduler_config.json", **values)
        refused(kontext_copy, said)

    def test_its_values_count(self, kontext_copy: Path) -> None:
        file = kontext_copy / "scheduler" / "scheduler_config.json"
        assert read_shift(file, FLUX_SHIFT) == FLUX_SHIFT
        change(file, max_shift=0.9, base_shift=None)
        assert UniWorld.from_pretrained(kontext_copy).dit.shift.max_mu == 0.9
        assert read_shift(file, FLUX_SHIFT).base_mu == FLUX_SHIFT.base_mu
