"""Execution providers: what is asked for computes, or the error says how to get it."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelm
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, ProviderError
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.kv_cache import GROWTH_STEP, KVCache
from edgelm.runtime import binding, onnx_runtime, session
from edgelm.runtime.providers import PROVIDERS, provider_named
from edgelm.runtime.session import DecoderSession
from edgelm.runtime.session_options import SessionOptions
from edgelm.testing import tiny_model_path

CONFIG = ModelConfig.load(tiny_model_path())
IDS = np.random.default_rng(0).integers(3, 320, 300).tolist()


class _Runtime:
    """ONNX Runtime as it is, but for what a test replaces."""

    def __init__(self, **replaced: Any) -> None:
        self._real, self._replaced = onnx_runtime.import_onnxruntime(), replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced[name] if name in self._replaced else getattr(self._real, name)


class _FakeSession:
    """A session that has a provider, and left some nodes to the CPU."""

    def __init__(self, real: Any, providers: list[str], left: list[str]) -> None:
        self._real, self._providers, self._left = real, providers, left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [types.SimpleNamespace(op_type=name) for name in self._left]
        return [types.SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)]


def pretend(monkeypatch: pytest.MonkeyPatch, providers: list[str], left: tuple[str, ...] = ()) -> None:
    """Let ONNX Runtime say that it has all providers, and a session those given."""
    real = onnx_runtime.import_onnxruntime()

    def start(graph: bytes, settings: Any, **_: Any) -> _FakeSession:
        return _FakeSession(real.InferenceSession(graph, settings, providers=["CPUExecutionProvider"]), providers, left)

    everything = [provider.name for provider in PROVIDERS.values()]
    runtime = _Runtime(
        get_available_providers=lambda: everything, InferenceSession=start, preload_dlls=lambda: print("not found")
    )
    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", lambda: runtime)


def test_the_documentation_of_the_options_lists_every_provider() -> None:
    listed = SessionOptions.__doc__ or ""
    assert [name for name in PROVIDERS if f'"{name}"' not in listed] == []


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_each_row_says_what_it_is_and_how_to_get_it(name: str) -> None:
    provider = provider_named(name)
    assert provider.name.endswith("ExecutionProvider")
    assert "pip install" in provider.install
    assert provider.precision
    assert name == "cpu" or provider.execution_providers[-1] == "CPUExecutionProvider"


def test_directml_runs_nodes_in_turn_and_without_a_memory_pattern() -> None:
    runtime = onnx_runtime.import_onnxruntime()
    for name in PROVIDERS:
        settings = onnx_runtime._settings(runtime, tiny_model_path() / "model.onnx", SessionOptions(provider=name), 1)
        assert settings.execution_mode == runtime.ExecutionMode.ORT_SEQUENTIAL  # its default too
        assert settings.enable_mem_pattern == (name != "directml")


@pytest.mark.parametrize("name", sorted(PROVIDERS.keys() - {"cpu"}))
def test_a_provider_that_is_not_here_is_an_error_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    runtime = _Runtime(get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", lambda: runtime)
    with pytest.raises(ProviderError) as caught:
        edgelm.load(tiny_model_path(), provider=name)
    assert f"The ONNX Runtime here has no '{name}'; it has: cpu." in str(caught.value)
    assert PROVIDERS[name].install in str(caught.value)


def test_a_list_of_providers_as_onnx_runtime_takes_it_is_none() -> None:
    with pytest.raises(ProviderError, match=r"There is no execution provider \['CUDAExecutionProvider'\]\. "):
        edgelm.load(tiny_model_path(), provider=["CUDAExecutionProvider"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "meant"), [("CUDA", "Did you mean cuda?"), ("gpu", "There are: cpu, cuda, tensorrt")])
def test_an_unknown_provider_is_an_error(name: str, meant: str) -> None:
    with pytest.raises(ProviderError, match=f"There is no execution provider '{name}'") as caught:
        SessionOptions(provider=name)
    assert meant in str(caught.value)


def test_options_of_a_provider_are_texts() -> None:
    with pytest.raises(ConfigError, match=r"provider_options is \{'device_id': 0\}; it must map texts to texts"):
        SessionOptions(provider_options={"device_id": 0})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"provider_options is None; it must map texts to texts"):
        SessionOptions(provider_options=None)  # type: ignore[arg-type]


def test_a_provider_that_fell_back_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="'cuda' was asked for, and ONNX Runtime fell back to the CPU"):
        edgelm.load(tiny_model_path(), provider="cuda")
    assert capsys.readouterr().out == ""


def test_a_provider_that_leaves_the_work_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ["OpenVINOExecutionProvider", "CPUExecutionProvider"], ("Shape", "MatMul", "MatMul"))
    with pytest.raises(ProviderError, match=r"'openvino' leaves 2 x MatMul of .*model\.onnx to the CPU"):
        edgelm.load(tiny_model_path(), provider="openvino")


def test_a_cache_of_another_type_than_the_providers_attention_takes_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="values of float32; the attention of 'cuda' computes with float16"):
        edgelm.load(tiny_model_path(), provider="cuda")


def test_a_provider_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("libnvinfer.so.10: cannot open shared object file")

    everything = [provider.name for provider in PROVIDERS.values()]
    runtime = _Runtime(get_available_providers=lambda: everything, InferenceSession=refuse)
    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", lambda: runtime)
    with pytest.raises(ProviderError, match=r"'directml' does not start with .*libnvinfer.*To set it up: `pip uninst"):
        edgelm.load(tiny_model_path(), provider="directml")


def test_what_is_set_of_a_provider_comes_before_what_edgelm_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def refuse(*_: Any, **named: Any) -> None:
        asked.update(named)
        raise RuntimeError("not today")

    everything = [provider.name for provider in PROVIDERS.values() if provider.name != "CUDAExecutionProvider"]
    runtime = _Runtime(get_available_providers=lambda: everything, InferenceSession=refuse, preload_dlls=lambda: None)
    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", lambda: runtime)
    options = SessionOptions(provider="tensorrt", provider_options={"trt_fp16_enable": "0", "device_id": "1"})
    with pytest.raises(ProviderError, match="'tensorrt' does not start"):
        edgelm.load(tiny_model_path(), options)
    first = ("TensorrtExecutionProvider", {"trt_fp16_enable": "0", "device_id": "1"})
    assert asked == {"providers": [first, "CPUExecutionProvider"], "enable_fallback": 0}


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("libcudart.so.13: cannot open shared object file", "libcudart.so.13: cannot open shared object file"),
        ("undefined symbol: Provider_GetHost", None),  # which ONNX Runtime has when it loads the provider itself
    ],
)
def test_what_a_build_with_cuda_lacks_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, missing: str | None
) -> None:
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir()

    def load(name: str) -> None:
        if name == str(library) or not library.exists():
            raise OSError(words)

    runtime = types.SimpleNamespace(__file__=str(tmp_path / "__init__.py"), preload_dlls=lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(onnx_runtime.ctypes, "CDLL", load)
        assert onnx_runtime._missing_library(runtime) is None  # no build with CUDA, and none is looked for
        library.touch()
        assert onnx_runtime._missing_library(runtime) == missing


def test_matrices_without_rows_are_given_to_no_version_that_divides_by_zero() -> None:
    versions = ("1.28.0", "1.31.1", "1.32.0", "2.0.0")
    taken = [onnx_runtime.takes_empty_matrices(types.SimpleNamespace(__version__=version)) for version in versions]
    assert taken == [False, False, True, True]


def test_a_provider_that_has_a_session_and_the_graph_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = edgelm.load(tiny_model_path()).generate(IDS[:9], edgelm.GenerationConfig(max_new_tokens=9))
    pretend(monkeypatch, ["CoreMLExecutionProvider", "CPUExecutionProvider"])
    model = edgelm.load(tiny_model_path(), SessionOptions(threads=1), provider="coreml")
    assert model.generate(IDS[:9], edgelm.GenerationConfig(max_new_tokens=9)).token_ids == expected.token_ids


@pytest.fixture(params=["device", "passing"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DecoderSession:
    """A session that keeps its caches outside of their buffers: in memory of a device, or passed from call to call."""
    ours = DecoderSession(tiny_model_path(), CONFIG)
    monkeypatch.setattr(binding, "works_in_place", lambda _: False)
    monkeypatch.setattr(session, "works_in_place", lambda _: False)
    object.__setattr__(ours._graph.facts, "shares_cache", request.param == "device")
    return ours


@pytest.fixture(scope="module")
def in_place() -> DecoderSession:
    return DecoderSession(tiny_model_path(), CONFIG)


def test_a_cache_elsewhere_gives_the_logits_of_one_in_its_buffers(
    in_place: DecoderSession, elsewhere: DecoderSession
) -> None:
    plan = [100, 1, 1, 26, 1, 1, 60]  # over the first growth of the cache
    assert sum(plan[:4]) == GROWTH_STEP
    caches = [in_place.new_cache(), elsewhere.new_cache()]
    start = 0
    for count in plan:
        rows = [
            model.forward(IDS[start : start + count], cache, all_logits=True).copy()
            for model, cache in zip((in_place, elsewhere), caches, strict=True)
        ]
        np.testing.assert_array_equal(*rows)
        start += count
    for ours, theirs in zip(caches[1].buffers, caches[0].buffers, strict=True):
        np.testing.assert_array_equal(ours[:, :, :start], theirs[:, :, :start])


def test_a_cache_elsewhere_is_truncated_cloned_and_filled_from_its_buffers(
    in_place: DecoderSession, elsewhere: DecoderSession
) -> None:
    expected = in_place.new_cache()
    in_place.forward(IDS[:40], expected)
    cache = elsewhere.new_cache()
    elsewhere.forward(IDS[:30], cache)
    elsewhere.forward(IDS[200:220], cache)
    cache.truncate(30)
    copy = cache.clone()
    for mine in (cache, copy):
        for source, target in zip(expected.buffers, mine.buffers, strict=True):
            target[:, :, 30:40] = source[:, :, 30:40]  # as the cache of prefixes does
        mine.token_ids.extend(IDS[30:40])
        reference = expected.clone()
        np.testing.assert_allclose(
            elsewhere.forward(IDS[40:60], mine), in_place.forward(IDS[40:60], reference), atol=1e-4
        )
    hidden = elsewhere.forward_hidden(IDS[60:65], cache)
    reference = in_place.new_cache()
    in_place.forward(IDS[:60], reference)
    np.testing.assert_allclose(hidden, in_place.forward_hidden(IDS[60:65], reference), atol=1e-4)


def test_a_cache_elsewhere_goes_on_from_what_it_holds_wherever_an_interrupt_came(
    in_place: DecoderSession, elsewhere: DecoderSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    cache, expected = elsewhere.new_cache(), in_place.new_cache()
    elsewhere.forward(IDS[:30], cache)
    in_place.forward(IDS[:30], expected)
    held = binding._HeldElsewhere
    for owner, name in ((held, "_computed"), (KVCache, "leave_in"), (KVCache, "extend")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                elsewhere.forward(IDS[200:205], cache)
        assert cache.length == 30
    fetch, calls = held.fetch, list[object]()

    def fetch_at_the_second_call(own: Any, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        fetch(own, *arguments)

    monkeypatch.setattr(held, "fetch", fetch_at_the_second_call)
    elsewhere.forward(IDS[30:40], cache)
    in_place.forward(IDS[30:40], expected)
    with pytest.raises(KeyboardInterrupt):
        cache.settle()
    for ours, theirs in zip(cache.buffers, expected.buffers, strict=True):
        np.testing.assert_allclose(ours[:, :, :40], theirs[:, :, :40], atol=1e-4)
    np.testing.assert_allclose(elsewhere.forward(IDS[40:60], cache), in_place.forward(IDS[40:60], expected), atol=1e-4)


def test_rows_of_a_batch_elsewhere_move_with_what_they_hold(
    in_place: DecoderSession, elsewhere: DecoderSession
) -> None:
    batch = KVBatch(CONFIG)
    rows = [batch.add() for _ in range(3)]
    for number, row in enumerate(rows):
        elsewhere.forward(IDS[10 * number : 10 * number + 9], row)
    batch.activate(rows[1])
    batch.activate(rows[2])
    batch.remove(rows[1])
    batch.activate(rows[0])
    logits = elsewhere.forward_rows([5, 6], batch)
    for row, start, token, logits_V in zip(batch.rows, (20, 0), (5, 6), logits, strict=True):
        assert row.token_ids == [*IDS[start : start + 9], token]
        cache = in_place.new_cache()
        in_place.forward(IDS[start : start + 9], cache)
        np.testing.assert_allclose(logits_V, in_place.forward([token], cache)[0], atol=1e-4)


def test_what_a_cache_elsewhere_computed_behind_a_cut_is_in_its_buffers(
    in_place: DecoderSession, elsewhere: DecoderSession
) -> None:
    caches = in_place.new_cache(), elsewhere.new_cache()
    for model, cache in zip((in_place, elsewhere), caches, strict=True):
        model.forward(IDS[:20], cache)
        assert cache.buffers[0].any()  # which brings them up to date, with 20 tokens
        model.forward(IDS[20:25], cache)
        cache.truncate(10)
        model.forward(IDS[100:105], cache)
    for theirs, ours in zip(*(cache.buffers for cache in caches), strict=True):
        np.testing.assert_allclose(ours[:, :, :15], theirs[:, :, :15], atol=1e-4)
