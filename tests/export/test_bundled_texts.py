"""The texts that come with the exporter: what is calibrated and measured on them holds for these bytes alone."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest

# The figures of docs/results and of packages' manifests are of these. A text that is changed on purpose gets new ones.
SHA256 = {
    "calibration.txt": "df9da77eac626d162166fc07d485adfae101c33083006ed3a9b5f8c61c88ca96",
    "verification.txt": "ff881430d996ee21be8afb16bce910eb6050e99a06c4ee738644383dfa6b2205",
}


@pytest.mark.parametrize("name", SHA256)
def test_a_bundled_text_has_the_bytes_that_figures_were_taken_on(name: str) -> None:
    data = resources.files("edgelm_export").joinpath("data", name).read_bytes()

    assert hashlib.sha256(data).hexdigest() == SHA256[name]


def test_there_is_no_bundled_text_beside_them() -> None:
    names = {file.name for file in resources.files("edgelm_export").joinpath("data").iterdir()}
    assert {name for name in names if name.endswith(".txt")} == SHA256.keys()
