"""`uniworld convert`: conversion to ComfyUI's files, to diffusers' folders, and to other dtypes."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from uniworld.training.publish import conversion as conversion_module
from uniworld.training.publish import work_folder
from uniworld.training.publish.conversion import Conversion, convert_checkpoint
from uniworld.training.publish.tensor_file import TensorEntry, TensorFile
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.families.uniworld_v1.checkpoint import UniWorldParts
from uniworld.uniworld_core.files import sha256_file
from uniworld.uniworld_core.loading.folders import ModelFolders
from uniworld.uniworld_core.loading.shipped import shipped_model
from uniworld.uniworld_core.loading.weights import Shards

TINY = shipped_model("tiny")
FOLDERS = ModelFolders(TINY.checkpoint, TINY.flux, TINY.siglip)


def source_tensors() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in Shards(TINY.checkpoint).read(Shards(TINY.checkpoint).shapes)}


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny as files for ComfyUI, in float32."""
    folder = tmp_path_factory.mktemp("models")
    convert_checkpoint(FOLDERS, folder, Conversion("comfy", "float32", "tiny"))
    return folder


def test_files_for_comfyui_are_in_the_folders_of_its_loaders(comfy: Path) -> None:
    files = {path.relative_to(comfy).as_posix() for path in comfy.rglob("*") if path.is_file()}
    assert files == {
        "tiny.conversion.json",
        "diffusion_models/tiny.safetensors",
        "text_encoders/tiny_qwen2.5_vl.safetensors",
        "text_encoders/tiny_projector.safetensors",
        "text_encoders/tiny_routing.safetensors",
        "style_models/tiny_siglip_redux.safetensors",
        "clip_vision/tiny_siglip.safetensors",
        "vae/tiny_vae.safetensors",
    }
    record = json.loads((comfy / "tiny.conversion.json").read_text())
    assert record["source"]["checkpoint"] == work_folder.fingerprint(TINY.checkpoint)
    for name, entry in record["files"].items():
        assert entry == {"bytes": (comfy / name).stat().st_size, "sha256": sha256_file(comfy / name)}
    assert set(record["files"]) == files - {"tiny.conversion.json"}


def test_the_dit_has_bfl_names_and_all_values_of_the_source(comfy: Path) -> None:
    dit, source = load_file(comfy / "diffusion_models/tiny.safetensors"), source_tensors()
    prefix = "denoise_tower.denoiser."
    block = f"{prefix}single_transformer_blocks.0."
    parts = (f"{block}attn.to_q", f"{block}attn.to_k", f"{block}attn.to_v", f"{block}proj_mlp")
    assert torch.equal(dit["single_blocks.0.linear1.weight"], torch.cat([source[f"{part}.weight"] for part in parts]))
    shift, scale = dit["final_layer.adaLN_modulation.1.weight"].chunk(2)
    assert torch.equal(torch.cat([scale, shift]), source[f"{prefix}norm_out.linear.weight"])
    mlp = f"{prefix}transformer_blocks.0.ff_context.net.2.bias"
    assert torch.equal(dit["double_blocks.0.txt_mlp.2.bias"], source[mlp])
    counted = sum(tensor.numel() for name, tensor in source.items() if name.startswith(prefix))
    assert sum(tensor.numel() for tensor in dit.values()) == counted


def test_the_small_files_contain_the_projectors_and_the_pooled_empty_prompt(comfy: Path) -> None:
    source = source_tensors()
    redux = load_file(comfy / "style_models/tiny_siglip_redux.safetensors")
    assert set(redux) == {"redux_up.weight", "redux_up.bias", "redux_down.weight", "redux_down.bias"}
    assert torch.equal(redux["redux_down.weight"], source["denoise_tower.siglip_projector.2.weight"])
    file = comfy / "text_encoders/tiny_projector.safetensors"
    projector = load_file(file)
    assert torch.equal(projector["denoise_projector.0.bias"], source["denoise_tower.denoise_projector.0.bias"])
    parts = UniWorldParts(TINY.checkpoint, TINY.flux)
    torch.testing.assert_close(projector["pooled_empty_prompt"], parts["clip"].load(torch.float32).pool([""])[0])
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["vlm_pixels"] == "12544"
    vlm = load_file(comfy / "text_encoders/tiny_qwen2.5_vl.safetensors")
    assert "visual.merger.ln_q.weight" in vlm
    assert "model.embed_tokens.weight" in vlm
    assert "lm_head.weight" not in vlm


def test_fp8_has_a_scale_per_linear_weight_and_comfyuis_marker(tmp_path: Path, comfy: Path) -> None:
    convert_checkpoint(FOLDERS, tmp_path, Conversion("comfy", "fp8", "tiny"))
    floats = load_file(comfy / "diffusion_models/tiny.safetensors")
    scaled = load_file(tmp_path / "diffusion_models/tiny.safetensors")
    assert scaled.pop("scaled_fp8").shape == (2,)
    for name, tensor in floats.items():
        if tensor.ndim == 2:
            scale = scaled[f"{name.removesuffix('.weight')}.scale_weight"]
            assert scaled[name].dtype == torch.float8_e4m3fn
            error = (scaled[name].float() * scale - tensor).norm() / tensor.norm()
            assert error < 0.04, f"{name} is {error:.3f} off"
        else:
            assert scaled[name].dtype == torch.bfloat16
    assert load_file(tmp_path / "text_encoders/tiny_qwen2.5_vl.safetensors")["model.embed_tokens.weight"].dtype == (
        torch.bfloat16
    )
    assert load_file(tmp_path / "style_models/tiny_siglip_redux.safetensors")["redux_up.weight"].dtype == torch.bfloat16


def test_diffusers_and_transformers_open_their_folders(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    target = tmp_path / "diffusers"
    convert_checkpoint(FOLDERS, target, Conversion("diffusers", "float32", shard_bytes=2**20))
    source = source_tensors()
    transformer = FluxTransformer2DModel.from_pretrained(target / "transformer", low_cpu_mem_usage=False)
    for name, tensor in transformer.state_dict().items():
        assert torch.equal(tensor, source[f"denoise_tower.denoiser.{name}"])
    vlm = Qwen2_5_VLForConditionalGeneration.from_pretrained(target / "vlm", dtype=torch.float32)
    assert torch.equal(vlm.lm_head.weight, source["lm_head.weight"])
    assert torch.equal(vlm.model.visual.merger.ln_q.weight, source["visual.merger.ln_q.weight"])
    assert len(list((target / "transformer").glob("*.safetensors"))) > 1


@pytest.mark.parametrize(("storage", "kind"), [("int8", "I8"), ("fp8", "F8_E4M3")])
def test_an_8_bit_checkpoint_opens_in_that_storage(storage: str, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "converted"
    convert_checkpoint(FOLDERS, target, Conversion("uniworld", storage))
    shards = Shards(target)
    assert {shards.dtypes[name] for name in shards.encodings} == {kind}
    assert {dtype for name, dtype in shards.dtypes.items() if name not in shards.encodings} == {"BF16"}
    assert "lm_head.weight" not in shards.encodings
    opened = UniWorld.from_pretrained(target, dtype=torch.float32).dit
    expected = UniWorld.from_pretrained(FOLDERS.checkpoint, dtype=torch.float32, storage=storage).dit
    for name, value in opened.state_dict().items():
        if value.dtype in (torch.int8, torch.float8_e4m3fn):
            assert torch.equal(value.float(), expected.state_dict()[name].float()), name
    assert any(value.itemsize == 1 for value in opened.state_dict().values())
    assert json.loads((target / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "bfloat16"


def test_a_checkpoint_in_bfloat16_opens(tmp_path: Path) -> None:
    convert_checkpoint(FOLDERS, tmp_path / "half", Conversion("uniworld", "bfloat16"))
    half, source = Shards(tmp_path / "half"), source_tensors()
    for name, tensor in half.read(half.shapes):
        assert torch.equal(tensor, source[name].bfloat16())
    UniWorldParts(tmp_path / "half", TINY.flux, TINY.siglip).check()
    assert (tmp_path / "half" / "task_head_final.pt").read_bytes() == (
        TINY.checkpoint / "task_head_final.pt"
    ).read_bytes()


class Stop:
    """Interrupts a conversion after a number of tensors, like Ctrl-C."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int) -> None:
        if done == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 40, 130])
def test_an_interrupted_conversion_resumes(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = Conversion("uniworld", "bfloat16", shard_bytes=2**19)
    convert_checkpoint(FOLDERS, tmp_path / "whole", conversion)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(FOLDERS, tmp_path / "parts", conversion, Stop(after))
    assert not (tmp_path / "parts").exists()
    read = []
    data = TensorEntry.data
    monkeypatch.setattr(TensorEntry, "data", lambda self, name: read.append(name) or data(self, name))
    convert_checkpoint(FOLDERS, tmp_path / "parts", conversion)
    assert len(read) == len(Shards(TINY.checkpoint).shapes) - after
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "parts"}
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes(), file.name


def test_tensors_that_were_damaged_since_are_written_again(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(7, 5) for i in range(6)}
    entries = {
        name: TensorEntry(torch.bfloat16, (7, 5), lambda tensor=tensor: tensor) for name, tensor in tensors.items()
    }
    steps = iter(range(10))

    def stop() -> None:
        if next(steps) == 3:
            raise KeyboardInterrupt

    file = tmp_path / "model.safetensors"
    with pytest.raises(KeyboardInterrupt):
        TensorFile(entries).write(file, stop)
    part = tmp_path / "model.safetensors.part"
    damaged = bytearray(part.read_bytes())
    damaged[-100] ^= 1  # in the third of the four tensors of 70 bytes
    part.write_bytes(damaged)
    assert TensorFile(entries).write(file) == sha256_file(file)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors"}
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, tensors[name].bfloat16())


def test_a_conversion_of_another_source_does_not_resume_it(tmp_path: Path) -> None:
    other = Path(shutil.copytree(TINY.checkpoint, tmp_path / "other"))
    (other / "knows.json").unlink(missing_ok=True)
    (other / "generation_config.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(ModelFolders(other), tmp_path / "target", Conversion("uniworld"), Stop(10))
    convert_checkpoint(FOLDERS, tmp_path / "target", Conversion("uniworld"))
    record = json.loads((tmp_path / "target" / "conversion.json").read_text())
    assert record["source"]["checkpoint"] == work_folder.fingerprint(TINY.checkpoint)


def test_a_source_that_was_trained_meanwhile_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_folder, "_SAMPLE", 2**10)  # tiny's shards are shorter than what a fingerprint covers
    source = Path(shutil.copytree(TINY.checkpoint, tmp_path / "source"))
    before = work_folder.fingerprint(source)
    file = max(source.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    last = len(Shards(source).shapes) - 1
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(ModelFolders(source), tmp_path / "target", Conversion("uniworld", "float32"), Stop(last))
    values = bytearray(file.read_bytes())
    middle = len(values) // 2 // 4 * 4
    values[middle : middle + 4] = b"\0\0\x80\x3f"  # 1.0, where the fingerprint does not look
    file.write_bytes(values)
    assert work_folder.fingerprint(source) == before
    convert_checkpoint(ModelFolders(source), tmp_path / "target", Conversion("uniworld", "float32"))
    wanted = load_file(file)
    for name, tensor in Shards(tmp_path / "target").read(wanted):
        assert torch.equal(tensor, wanted[name]), name


def test_a_source_that_is_written_meanwhile_is_an_error(tmp_path: Path) -> None:
    source = Path(shutil.copytree(TINY.checkpoint, tmp_path / "source"))

    def write(done: int, total: int) -> None:
        file = source / "model-00001-of-00006.safetensors"
        file.write_bytes(file.read_bytes())

    with pytest.raises(UniWorldError, match="were written while they were converted"):
        convert_checkpoint(ModelFolders(source), tmp_path / "target", Conversion("uniworld"), write)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_another_flux_folder_is_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flux = Path(shutil.copytree(TINY.flux, tmp_path / "flux"))
    sources = []
    monkeypatch.setattr(conversion_module, "publish", lambda output, *_: sources.append(output.about["source"]))

    def convert() -> None:
        convert_checkpoint(ModelFolders(TINY.checkpoint, flux), tmp_path / "models", Conversion("comfy", "float32"))

    convert()
    convert()
    (file,) = (flux / "vae").glob("*.safetensors")
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    convert()
    assert sources[0] == sources[1]
    assert {name for name in sources[0] if sources[0][name] != sources[2][name]} == {"flux/vae"}


def test_a_conversion_to_other_names_does_not_resume_it(tmp_path: Path) -> None:
    entry = TensorEntry(torch.float32, (2,), lambda: torch.ones(2))

    def publish(name: str, progress: Callable[[int, int], None]) -> None:
        files = {f"{name}.safetensors": TensorFile({"t": entry}), "last.safetensors": TensorFile({"t": entry})}
        output = work_folder.ConvertedFiles(files, lambda folder: None, {"to": "comfy"}, f"{name}.json")
        work_folder.publish(output, tmp_path, into_existing=True, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        publish("old", Stop(2))
    publish("new", lambda done, total: None)
    names = {"new.safetensors", "last.safetensors"}
    assert json.loads((tmp_path / "new.json").read_text())["files"].keys() == names
    assert {path.name for path in tmp_path.iterdir()} == names | {"new.json"}


def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(work_folder.shutil, "disk_usage", lambda path: usage(1000))


def _failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorFile, "write", write)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [(_full, r"target needs \d\.\d MiB, but only 0\.0 MiB are free"), (_failing, "the partial output was removed")],
)
@pytest.mark.parametrize("to", ["uniworld", "comfy"])
def test_a_full_disk_leaves_nothing(
    to: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(monkeypatch)
    with pytest.raises(UniWorldError, match=sentence):
        convert_checkpoint(FOLDERS, tmp_path / "new" / "target", Conversion(to))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_a_conversion_killed_while_files_are_moved_resumes(
    after: int, comfy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, conversion = tmp_path / "models", Conversion("comfy", "float32", "tiny")
    (models / "vae").mkdir(parents=True)
    (models / "vae" / "mine.safetensors").write_bytes(b"mine")
    replace, calls = Path.replace, []

    def stop(self: Path, target: Path) -> Path:
        if "models" in target.parts and ".uniworld-convert" not in target.parts:
            if len(calls) == after:
                raise KeyboardInterrupt
            calls.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        if after == 8:  # after the last of the files
            patch.setattr(work_folder.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(FOLDERS, models, conversion)
    if 0 < after < 8:  # another conversion must not take these files for its own
        with pytest.raises(UniWorldError, match="already exists"):
            convert_checkpoint(FOLDERS, models, Conversion("comfy", "bfloat16", "tiny"))
    monkeypatch.setattr(TensorFile, "write", lambda *_: pytest.fail("nothing is written again"))
    convert_checkpoint(FOLDERS, models, conversion)
    made = {path.relative_to(models).as_posix(): path for path in models.rglob("*") if path.is_file()}
    assert made.pop("vae/mine.safetensors").read_bytes() == b"mine"
    assert made.keys() == {path.relative_to(comfy).as_posix() for path in comfy.rglob("*") if path.is_file()}
    assert all(path.read_bytes() == (comfy / name).read_bytes() for name, path in made.items())
    with pytest.raises(UniWorldError, match="already exists"):
        convert_checkpoint(FOLDERS, models, conversion)


def test_a_moved_file_that_was_damaged_since_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = Conversion("comfy", "float32", "tiny")
    with monkeypatch.context() as patch:
        sync = work_folder.sync_folder
        patch.setattr(work_folder, "sync_folder", lambda path: (sync(path), (_ for _ in ()).throw(KeyboardInterrupt)))
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(FOLDERS, tmp_path, conversion)
    (moved,) = tmp_path.glob("*/*.safetensors")
    moved.write_bytes(moved.read_bytes()[:-8])
    with pytest.raises(UniWorldError, match=f"{moved.name} already exists"):
        convert_checkpoint(FOLDERS, tmp_path, conversion)


@pytest.mark.parametrize(("target", "to", "sentence"), [
    ("models/source", "uniworld", r"source is the checkpoint folder"),
    ("models/source/new", "diffusers", r"new is inside the checkpoint folder .*: choose a folder outside of it"),
    ("models/source/vae", "comfy", r"vae is inside the checkpoint folder"),
    ("models/link", "comfy", r"link is the checkpoint folder"),
    ("models", "uniworld", r"models contains the checkpoint folder .*: choose a new folder"),
])  # fmt: skip
def test_a_target_inside_or_around_the_source_is_rejected(target: str, to: str, sentence: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(TINY.checkpoint, tmp_path / "models" / "source"))
    (tmp_path / "models" / "link").symlink_to(source)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UniWorldError, match=sentence):
        convert_checkpoint(ModelFolders(source, TINY.flux), tmp_path / target, Conversion(to))
    assert sorted(tmp_path.rglob("*")) == before


def test_comfyuis_models_folder_may_contain_the_source(tmp_path: Path) -> None:
    source = Path(shutil.copytree(TINY.checkpoint, tmp_path / "uniworld" / "source"))
    convert_checkpoint(ModelFolders(source, TINY.flux), tmp_path, Conversion("comfy", "float32", "tiny"))
    assert (tmp_path / "diffusion_models" / "tiny.safetensors").is_file()


def test_invalid_arguments_are_rejected_before_anything_is_written(tmp_path: Path, comfy: Path) -> None:
    before = sorted(comfy.rglob("*"))
    with pytest.raises(UniWorldError, match="already exists"):
        convert_checkpoint(FOLDERS, comfy, Conversion("comfy", "float32", "tiny"))
    assert sorted(comfy.rglob("*")) == before
    with pytest.raises(UniWorldError, match="already exists"):
        convert_checkpoint(FOLDERS, comfy, Conversion("uniworld"))
    with pytest.raises(UniWorldError, match="--storage is fp8"):
        convert_checkpoint(FOLDERS, tmp_path / "a", Conversion("diffusers", "fp8"))
    with pytest.raises(UniWorldError, match="--flux"):
        convert_checkpoint(ModelFolders(TINY.checkpoint), tmp_path / "a", Conversion("comfy"))
    assert list(tmp_path.iterdir()) == []


def test_values_that_overflow_the_dtype_are_named(tmp_path: Path) -> None:
    entry = TensorEntry(torch.float16, (1,), lambda: torch.tensor([1e6]))
    with pytest.raises(UniWorldError, match="big has values that are not finite as F16"):
        TensorFile({"big": entry}).write(tmp_path / "model.safetensors")
