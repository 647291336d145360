"""Display names follow one pattern, and class ids are not used by another pack."""

from __future__ import annotations

import re

import pytest
from uniworld import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from uniworld.nodes.headless.registry.schema import object_info

# Class ids that judian17/ComfyUI-UniWorld-jd17 registers, by ComfyUI-Manager's map of 2026-11. Of two packs with one id
# the later one wins in ComfyUI.
FOREIGN_IDS = {"UniWorldEncoderNode", "UniWorldScheduler", "UniWorldSiglipEncoder", "UniWorld_T5_CLIP_Encoder"}

each_node = pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)


def test_no_class_id_is_that_of_another_pack() -> None:
    assert not FOREIGN_IDS & set(NODE_CLASS_MAPPINGS)


@each_node
def test_class_ids_have_the_pack_in_front(name: str) -> None:
    assert re.fullmatch(r"UniWorld[A-Z][A-Za-z]+", name)


@each_node
def test_display_names_are_in_title_case_and_name_the_pack(name: str) -> None:
    label = NODE_DISPLAY_NAME_MAPPINGS[name]
    assert "UniWorld" in label
    assert all(word[0].isupper() for word in re.findall(r"[A-Za-z]+", label)), label


def test_display_names_are_different() -> None:
    assert len(set(NODE_DISPLAY_NAME_MAPPINGS.values())) == len(NODE_DISPLAY_NAME_MAPPINGS)


@each_node
def test_categories_are_below_uniworld(name: str) -> None:
    assert re.fullmatch(r"UniWorld/[a-z]+", NODE_CLASS_MAPPINGS[name].CATEGORY)


@each_node
def test_search_finds_nodes_by_the_words_of_the_field(name: str) -> None:
    aliases = NODE_CLASS_MAPPINGS[name].SEARCH_ALIASES
    assert len(aliases) >= 2
    assert len(set(aliases)) == len(aliases)
    assert object_info(name, NODE_CLASS_MAPPINGS[name])["search_aliases"] == aliases


def test_nodes_without_aliases_say_nothing_of_them() -> None:
    assert "search_aliases" not in object_info("Bare", type("Bare", (), {"INPUT_TYPES": lambda: {}}))
