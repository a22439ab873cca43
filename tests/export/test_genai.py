"""onnxruntime-genai opens the same folder. Where its wheel is missing, nothing is tested."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_tiny_model import make_checkpoint

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision
from edgelm.testing import tiny_model_path
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

genai = pytest.importorskip("onnxruntime_genai")


def greedy_tokens_of_genai(folder: Path, prompt: list[int], count: int) -> list[int]:
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False, batch_size=1)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return list(generator.get_sequence(0))[len(prompt) :]


def test_genai_generates_the_same_greedy_tokens_from_the_tiny_package() -> None:
    prompt = edgelm.load(tiny_model_path()).tokenizer.encode("Once upon a time")
    ours = edgelm.load(tiny_model_path()).generate(prompt, edgelm.GenerationConfig(max_new_tokens=24))
    assert greedy_tokens_of_genai(tiny_model_path(), prompt, 24) == list(ours.token_ids)


@pytest.mark.parametrize("change", [Precision.with_int8_cache, Precision.with_standard_operators])
def test_genai_passes_keys_and_values_along_as_we_do(change: Callable[[Precision], Precision], tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    export_package(checkpoint, tmp_path / "package", change(PRECISIONS["fp32"]))
    prompt = np.random.default_rng(1).integers(3, 320, 40).tolist()
    ours = edgelm.load(tmp_path / "package").generate(prompt, edgelm.GenerationConfig(max_new_tokens=24))
    assert greedy_tokens_of_genai(tmp_path / "package", prompt, 24) == list(ours.token_ids)


@pytest.mark.real_model
def test_genai_generates_the_same_greedy_tokens_from_the_real_package(smollm2_package: Path) -> None:
    model = edgelm.load(smollm2_package)
    prompt = model.encode_chat([{"role": "user", "content": "Write one sentence about the sea."}])
    ours = model.generate(prompt, edgelm.GenerationConfig(max_new_tokens=24))
    theirs = greedy_tokens_of_genai(smollm2_package, prompt, 24)
    assert theirs == list(ours.token_ids[: len(theirs)])
    assert len(theirs) > 8
