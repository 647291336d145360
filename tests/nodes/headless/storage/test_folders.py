"""Names in a workflow stay inside their folders, and pictures are found where ComfyUI finds them."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from uniworld.nodes.headless.storage import folders
from uniworld.nodes.headless.storage.folders import Folders, check_relative, resolve_inside
from uniworld.nodes.headless.storage.name_tokens import expand_tokens


def test_a_plain_name_and_a_subfolder_are_kept(tmp_path):
    assert resolve_inside(tmp_path, "a.png") == tmp_path / "a.png"
    assert resolve_inside(tmp_path, "sub\\a.png") == tmp_path / "sub" / "a.png"
    assert check_relative("Bücher/猫 1.png") == "Bücher/猫 1.png"


def test_the_number_of_nested_folders_is_limited():
    assert check_relative("a/" * 31 + "x.png")
    with pytest.raises(ValueError, match="is nested in 2000 folders; at most 31"):
        check_relative("a/" * 2000 + "x.png")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_a_symbolic_link_does_not_lead_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "in" / "door").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="symbolic link"):
        resolve_inside(tmp_path / "in", "door/key.png")


def test_the_folder_itself_may_be_a_symbolic_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert Folders(input=tmp_path / "alias", shipped_input=None).find_picture("a.png") == tmp_path / "real" / "a.png"


def test_annotated_names_are_searched_in_their_folder(place):
    place.output.mkdir()
    (place.output / "a.png").touch()
    assert place.find_picture("a.png [output]") == place.output / "a.png"
    with pytest.raises(ValueError, match=r"no picture 'a\.png'"):
        place.find_picture("a.png")


def test_the_users_pictures_take_precedence_over_shipped_ones(tmp_path, place):
    place.shipped_input = tmp_path / "shipped"
    place.shipped_input.mkdir()
    (place.shipped_input / "a.png").write_text("shipped")
    (place.shipped_input / "b.png").touch()
    (place.input / "a.png").write_text("own")
    (place.input / "notes.txt").touch()
    assert place.list_inputs() == ["a.png", "b.png"]
    assert place.find_picture("a.png").read_text() == "own"
    assert place.find_picture("b.png").parent == place.shipped_input


def test_the_error_for_a_missing_picture_lists_the_available_ones(place):
    place.shipped_input = None
    (place.input / "dog.png").touch()
    with pytest.raises(ValueError, match=r"Available: dog\.png"):
        place.find_picture("cat.png")


def test_a_bound_picture_gets_a_safe_and_unique_name(tmp_path, place):
    names = set()
    for folder, file in (("one", "cat.png"), ("two", "cat.png"), ("one", "we:ird [output]?.png")):
        path = tmp_path / folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(folder + file)
        name = place.bind(path)
        assert place.find_picture(name) == path
        assert check_relative(name) == name
        names.add(name)
    assert len(names) == 3
    with pytest.raises(ValueError, match="no picture file"):
        place.bind(tmp_path / "none.png")


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a/../../x", "C:\\x", "%2e%2e/x", "", "nul", "a\0b", "x" * 300])
def test_no_prefix_leads_out_of_the_output_folder(place, prefix):
    with pytest.raises(ValueError, match="file name prefix"):
        place.new_picture("output", prefix, width=1, height=1)
    assert not place.output.exists()


def test_tokens_are_replaced_and_cannot_add_folders(place):
    values = {"width": "640", "height": "480"}
    assert expand_tokens("a_%width%x%height%_%no%", lambda _: None, values) == "a_640x480_%no%"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d", expand_tokens("%date:yyyy-MM-dd hh%", lambda _: None, {}))
    assert re.fullmatch(r"\d{12}", expand_tokens("%year%%month%%day%%hour%%minute%", lambda _: None, {}))
    assert expand_tokens("%KSampler.seed%", {"KSampler.seed": "../7"}.get, {}) == ".._7"


def test_counters_continue_from_the_highest_one(place):
    made = place.new_picture("output", "sub/cat")
    assert (made.subfolder, made.stem, made.next_counter()) == ("sub", "cat", 1)
    for name in ("cat_00001_.png", "cat_00041_.png", "cat_x_.png", "catalog_00099_.png", "cat_00050.png"):
        (made.folder / name).touch()
    assert made.next_counter() == 42
    assert isinstance(made.folder, Path)


def test_folders_in_use_apply_to_one_context_only(tmp_path):
    common, mine = folders.current(), Folders.under(tmp_path)
    with ThreadPoolExecutor(1) as other, folders.use(mine):
        assert folders.current() is mine
        with folders.use(Folders()):
            assert folders.current() is not mine
        assert folders.current() is mine
        assert other.submit(folders.current).result() is common
    with pytest.raises(KeyError), folders.use(mine):
        raise KeyError
    assert folders.current() is common
