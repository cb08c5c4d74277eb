"""What is said of the license of weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from classify.export.licenses import NOT_STATED, license_of
from extract.backbones import get_backbone
from extract.weights import random_weights


@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg16"])
def test_imagenet_weights_name_their_license_and_the_terms_of_imagenet(name: str) -> None:
    backbone = get_backbone(name)
    made_up = random_weights(get_backbone("mobilenet_v2"))
    weights = replace(made_up, description="ImageNet, a.h5 (…)")
    terms = license_of(backbone, weights)
    assert terms.name == {"mobilenet_v2": "Apache-2.0", "vgg16": "CC-BY"}[name]
    assert "Apache License 2.0" in terms.sentence()
    assert "non-commercial research" in terms.sentence()
    assert ("Oxford" in terms.sentence()) == (name == "vgg16")


def test_license_of_a_file_of_one_s_own_is_not_stated() -> None:
    backbone = get_backbone("mobilenet_v2")
    weights = replace(random_weights(backbone), description="the file mine.h5")
    assert license_of(backbone, weights).name == NOT_STATED
    assert license_of(backbone, random_weights(backbone)).name == "none needed"
