"""Other builds of ONNX Runtime, and transformers.js, each in an environment of its own: the same greedy tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_adapter import write_tiny_adapter

import edgelm
from edgelm.testing import tiny_model_path

ENVIRONMENTS = ("onnxruntime-gpu", "onnxruntime-openvino", "transformers-js")
pytestmark = [pytest.mark.runtimes(*ENVIRONMENTS), pytest.mark.timeout(900)]

COUNT = 24
PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def expected() -> list[int]:
    config = edgelm.GenerationConfig(max_new_tokens=COUNT, ignore_eos=True)
    return list(edgelm.load(tiny_model_path()).generate(PROMPT, config).token_ids)


def test_transformers_js_opens_our_folder_and_generates_our_tokens(run_in: Any, expected: list[int]) -> None:
    folder = tiny_model_path()
    told = run_in("transformers-js", "use_transformers_js.mjs", str(folder.parent), folder.name, PROMPT, COUNT)
    model = edgelm.load(folder)
    end = next((i + 1 for i, id_ in enumerate(expected) if id_ in model.config.eos_token_ids), COUNT)
    assert told["token_ids"] == expected[:end]
    assert told["encoded"] == model.tokenizer.encode("Once upon a time")
    messages = [{"role": "user", "content": "Hello"}]
    assert model.tokenizer.encode(told["chat"], control_tokens=True) == model.encode_chat(messages)


def test_the_build_for_gpus_without_a_gpu_computes_on_the_cpu_and_says_what_is_missing(
    run_in: Any, expected: list[int]
) -> None:
    told = run_in(
        "onnxruntime-gpu", "use_provider.py", str(tiny_model_path()), PROMPT, COUNT, ["cpu", "cuda", "tensorrt"]
    )
    answers = told["answers"]
    assert answers["cpu"] == expected
    if isinstance(answers["cuda"], list):
        pytest.skip("this machine has a GPU; make test-gpu tests it")
    assert "'cuda' was asked for, and ONNX Runtime fell back to the CPU" in answers["cuda"]
    assert "'tensorrt' does not start" in answers["tensorrt"]
    assert told["stderr"] == ""
    found = [f"{state}: {found}" for state, found, _ in told["wheels"]]
    assert found[0].startswith("ok: onnxruntime-gpu 1.31.1")
    assert found[1].startswith("warning: The build for GPUs is installed, and finds none")
    assert found[2].startswith("warning: CUDA cannot be used: libcuda.so.1: cannot open")


def test_an_older_release_computes_beside_an_adapter_that_is_loaded(
    run_in: Any, expected: list[int], tmp_path: Path
) -> None:
    adapter = write_tiny_adapter(tmp_path / "adapter")
    told = run_in("onnxruntime-gpu", "use_adapter.py", str(tiny_model_path()), str(adapter), PROMPT, COUNT)
    model = edgelm.load(tiny_model_path())
    model.load_adapter(adapter)
    config = edgelm.GenerationConfig(max_new_tokens=COUNT, ignore_eos=True, adapter="mine")
    assert told["answers"] == [expected, list(model.generate(PROMPT, config).token_ids)]
    assert told["answers"][0] != told["answers"][1]


def test_openvino_generates_the_same_tokens_on_a_cpu(run_in: Any, tmp_path: Path) -> None:
    from foreign_models import greedy_tokens, optimum_package, save_llama

    llama = save_llama(tmp_path / "hf")
    optimum_package(tmp_path / "optimum", tmp_path / "hf", llama)
    told = run_in("onnxruntime-openvino", "use_provider.py", str(tmp_path / "optimum"), PROMPT, COUNT, ["openvino"])
    assert told["answers"]["openvino"] == greedy_tokens(llama, PROMPT, COUNT)
    assert "onnxruntime-openvino 1.24.1" in told["wheels"][0][1]


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_openvino_computes_all_of_a_package_in_standard_operators(name: str, run_in: Any, tmp_path: Path) -> None:
    from make_tiny_model import make_checkpoint

    from edgelm.architecture.quantization_recipe import PRECISIONS
    from edgelm_export.exporter import export_package
    from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

    folder = tmp_path / "package"
    with HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint")) as checkpoint:
        export_package(checkpoint, folder, PRECISIONS[name].with_standard_operators())
    told = run_in("onnxruntime-openvino", "use_provider.py", str(folder), PROMPT, COUNT, ["cpu", "openvino"])
    answer = edgelm.load(folder).generate(PROMPT, edgelm.GenerationConfig(max_new_tokens=COUNT, ignore_eos=True))
    assert told["answers"] == {provider: list(answer.token_ids) for provider in ("cpu", "openvino")}


def test_openvino_refuses_a_graph_whose_attention_it_would_leave_to_the_cpu(run_in: Any) -> None:
    told = run_in("onnxruntime-openvino", "use_provider.py", str(tiny_model_path()), PROMPT, COUNT, ["openvino"])
    assert "'openvino' leaves 2 x GroupQueryAttention" in told["answers"]["openvino"]
