"""From a recipe back to its steps: identities that say what they mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.decode import DecodeOptions


@given(
    st.builds(
        DecodeOptions,
        background=st.sampled_from(["white", "black"]),
        tolerate_truncated=st.booleans(),
        white_level=st.none() | st.integers(1, 65535).map(float),
    )
)
def test_decoding_is_read_back_from_its_identity(options: DecodeOptions) -> None:
    assert DecodeOptions.from_identity(options.identity) == options


@pytest.mark.parametrize(
    "identity",
    [
        "",
        "rgb8/2 alpha=white",
        "rgb8/1",
        "rgb8/1 alpha=pink",
        "rgb8/1 alpha=white white=high",
        "rgb8/1 alpha=white gamma=2",
        "rgb8/1 white=1023 alpha=white",
    ],
)
def test_decoding_of_another_version_is_refused(identity: str) -> None:
    with pytest.raises(ValueError, match=r"decoding|float"):
        DecodeOptions.from_identity(identity)
