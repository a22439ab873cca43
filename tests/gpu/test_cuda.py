"""CUDA, on a machine that has it: `make test-gpu`. Elsewhere all of it is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_models import genai_package, greedy_tokens, save_llama

import edgelm
from edgelm.errors import ProviderError
from edgelm.runtime.binding import DeviceBinding
from edgelm.runtime.onnx_runtime import describe_runtime
from edgelm.testing import tiny_model_path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not any(device.startswith("CUDA") for device in describe_runtime().devices),
        reason="ONNX Runtime finds no CUDA device here",
    ),
]

IDS = np.random.default_rng(0).integers(3, 320, 300).tolist()
# float16 has 11 bits: keys, values and activations lose the other 13, through two layers.
TOLERANCE = 0.1


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("hf")
    return folder, save_llama(folder)


@pytest.fixture(scope="module")
def on_cuda(llama: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> edgelm.LanguageModel:
    folder = genai_package(tmp_path_factory.mktemp("genai") / "tiny", llama[0], "fp16", "cuda")
    return edgelm.load(folder, provider="cuda")


def test_logits_are_those_of_transformers_step_by_step(on_cuda: edgelm.LanguageModel, llama: tuple[Path, Any]) -> None:
    import torch

    with torch.no_grad():
        expected = llama[1](torch.tensor([IDS])).logits[0].numpy()
    cache = on_cuda.session.new_cache()
    start = 0
    for count in (100, 1, 1, 26, 1, 1, 60):  # over the first growth of the cache
        logits = on_cuda.session.forward(IDS[start : start + count], cache)
        start += count
        np.testing.assert_allclose(logits[0], expected[start - 1], atol=TOLERANCE)
    assert isinstance(cache.binding, DeviceBinding)
    assert cache.binding.graph.device == "cuda"
    copy = cache.clone()
    for one in (cache, copy):
        one.truncate(50)
        np.testing.assert_allclose(on_cuda.session.forward(IDS[50:60], one)[0], expected[59], atol=TOLERANCE)


def test_requests_in_company_get_their_solo_tokens(on_cuda: edgelm.LanguageModel) -> None:
    config = edgelm.GenerationConfig(max_new_tokens=24, ignore_eos=True)
    prompts = [IDS[:7], IDS[20:170], IDS[:3]]
    alone = [on_cuda.generate(prompt, config).token_ids for prompt in prompts]
    assert [answer.token_ids for answer in on_cuda.generate_batch(prompts, config)] == alone


def test_most_greedy_tokens_are_those_of_transformers(on_cuda: edgelm.LanguageModel, llama: tuple[Path, Any]) -> None:
    config = edgelm.GenerationConfig(max_new_tokens=16, ignore_eos=True)
    ours = on_cuda.generate(IDS[:20], config).token_ids
    assert list(ours[:4]) == greedy_tokens(llama[1], IDS[:20], 4)


def test_a_package_with_a_float32_cache_is_refused() -> None:
    with pytest.raises(ProviderError, match="values of float32; the attention of 'cuda' computes with float16"):
        edgelm.load(tiny_model_path(), provider="cuda")
