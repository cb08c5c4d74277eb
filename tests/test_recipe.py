"""The identity of rows: what takes part in it, and digests that must never change."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from cache_tools import PROVENANCE, RECIPE, contents_of

from data_cache.digests import array_digest, block_digests, shard_context, split_context
from data_cache.recipe import Recipe
from data_cache.shards import shard_name

PINNED = "these digests are in people's caches: if one changes, every cache is orphaned, silently"

OTHER_VALUES = {
    "backbone": "resnet50",
    "weights_digest": "cd" * 32,
    "image_size": 160,
    "preprocessing": "mobilenet_v2/2",
    "decoding": "rgb8/2",
    "resize_mode": "crop",
    "feature_layer": "block_13",
    "numeric_class": "float16",
}


def test_the_digest_of_a_recipe_never_changes():
    expected = "93056946e9f1323b2efdf174264d18cb9b18c139552dc46a5ade317ec9cd33fb"
    assert RECIPE.digest() == expected, PINNED


def test_the_digest_of_an_array_never_changes():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = "0eae66827362022d355f5863946285a4e3bfa508c4a6143b8d9b72eaf01c17d3"
    assert array_digest(pixels).hex() == expected, PINNED
    expected = "1819ff5f3112dc1543d791c30dd6115ff323ec0b20a004992daba6adb1c8af65"
    assert array_digest(pixels.astype(np.float32)).hex() == expected, PINNED


def test_the_digest_of_a_block_never_changes():
    columns = [contents_of(["a", "b", "c"]), np.arange(6, dtype=np.float32).reshape(3, 2)]
    expected = [
        "089c3e7bc92b58685806f3f7cd7961337e04ea8c8d8f3fcfd69b1086afb651f3",
        "a2e3e133c3bc2937cebfa15b79c17fb044d21523b02f2a67922cc99f45d61ce7",
    ]
    found = [one.hex() for one in block_digests(shard_context(RECIPE.digest()), columns, 2)]
    assert found == expected, PINNED


def test_the_context_of_a_split_never_changes():
    expected = "208d7442bc9ce195f9704bc1691052965c0cccaba8efbea684bd5e2850056ce1"
    assert split_context(RECIPE.digest(), ("ant", "Bär"), "train").hex() == expected, PINNED


def test_the_name_of_a_shard_never_changes():
    expected = "shard-94f401d6ac3e37dac05dc19e.h5"
    assert shard_name(RECIPE, contents_of(["a", "b"])) == expected, PINNED


def test_every_field_of_a_recipe_takes_part_in_its_digest():
    assert OTHER_VALUES.keys() == {one.name for one in fields(Recipe)}
    digests = {replace(RECIPE, **{name: value}).digest() for name, value in OTHER_VALUES.items()}
    assert len(digests | {RECIPE.digest()}) == len(OTHER_VALUES) + 1


def test_provenance_takes_no_part_in_the_identity():
    named = {one.name for one in fields(Recipe)}
    assert not named & {one.name for one in fields(PROVENANCE)}


def test_the_order_of_arguments_takes_no_part_in_the_identity():
    values = {one.name: getattr(RECIPE, one.name) for one in fields(Recipe)}
    assert Recipe(**dict(reversed(values.items()))).digest() == RECIPE.digest()


def test_differences_are_said_in_words_with_digests_cut():
    other = replace(RECIPE, image_size=160, weights_digest="cd" * 32)
    assert RECIPE.differences(other) == (
        "weights digest cdcdcdcdcdcd…, was abababababab…",
        "image size 160, was 96",
    )
    assert RECIPE.differences(RECIPE) == ()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_the_digest_of_an_array_does_not_depend_on_the_machine(order, layout):
    pixels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    same = np.asarray(pixels.astype(pixels.dtype.newbyteorder(order)), order=layout)
    assert array_digest(same) == array_digest(pixels)


def test_the_digest_of_an_array_depends_on_type_and_shape():
    zeros = [np.zeros((4, 4), np.uint8), np.zeros((2, 8), np.uint8), np.zeros((4, 4), np.int8)]
    assert len({array_digest(one) for one in zeros}) == 3
