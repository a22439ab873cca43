import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgelm
from edgelm.config import ModelConfig
from edgelm.decoding.generate import prefill
from edgelm.errors import ConfigError, ContextLengthError, PackageError, ProviderError
from edgelm.memory.kv_cache import GROWTH_STEP
from edgelm.package.onnx_operators import OPERATORS
from edgelm.runtime.onnx_runtime import raise_as_ours
from edgelm.runtime.session import PREFILL_CHUNK, DecoderSession
from edgelm.runtime.session_options import SessionOptions
from edgelm.runtime.stop_switch import StoppedError, StopSwitch
from edgelm.testing import tiny_model_path

# Float32 sums in another order; the largest difference seen is 7e-6.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def session() -> DecoderSession:
    return DecoderSession(tiny_model_path(), ModelConfig.load(tiny_model_path()))


def random_ids(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 320, length).tolist()


def test_prefill_of_one_more_token_equals_prefill_and_one_decode_step(session: DecoderSession) -> None:
    ids = random_ids(41)
    at_once = session.forward(ids, session.new_cache())
    cache = session.new_cache()
    session.forward(ids[:-1], cache)
    np.testing.assert_allclose(session.forward(ids[-1:], cache), at_once, atol=TOLERANCE)


@pytest.mark.parametrize("length", [2, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 3 * PREFILL_CHUNK + 7])
def test_chunked_prefill_gives_the_logits_of_one_prefill(session: DecoderSession, length: int) -> None:
    ids = random_ids(length)
    chunked = prefill(session, ids, session.new_cache())
    np.testing.assert_allclose(chunked, session.forward(ids, session.new_cache())[0], atol=TOLERANCE)


@pytest.mark.parametrize("boundary", [GROWTH_STEP, 2 * GROWTH_STEP, 3 * GROWTH_STEP])
def test_growth_of_the_cache_changes_no_logits(session: DecoderSession, boundary: int) -> None:
    ids = random_ids(boundary + 2)
    cache = session.new_cache()
    session.forward(ids[: boundary - 1], cache)
    for position in range(boundary - 1, boundary + 2):  # the last place, the first one after growth, and one more
        logits_TV = session.forward(ids[position : position + 1], cache).copy()
        fresh = session.forward(ids[: position + 1], session.new_cache())
        np.testing.assert_allclose(logits_TV, fresh, atol=TOLERANCE)


def test_truncate_then_continue_equals_fresh(session: DecoderSession) -> None:
    ids, others = random_ids(60), random_ids(30, seed=1)
    cache = session.new_cache()
    session.forward(ids, cache)
    cache.truncate(20)
    continued = session.forward(others, cache)
    np.testing.assert_allclose(continued, session.forward(ids[:20] + others, session.new_cache()), atol=TOLERANCE)


def test_all_logits_are_those_of_each_position(session: DecoderSession) -> None:
    ids = random_ids(9)
    logits_TV = session.forward(ids, session.new_cache(), all_logits=True)
    assert logits_TV.shape == (9, 320)
    for length in range(1, 10):
        np.testing.assert_allclose(
            logits_TV[length - 1], session.forward(ids[:length], session.new_cache())[0], atol=TOLERANCE
        )


def test_one_thread_and_two_give_the_same_bits() -> None:
    config = ModelConfig.load(tiny_model_path())
    ids = random_ids(200)
    rows = []
    for threads in (1, 2):
        session = DecoderSession(tiny_model_path(), config, SessionOptions(threads=threads))
        assert session._graph.session.get_session_options().intra_op_num_threads == threads
        rows.append(session.forward(ids, session.new_cache()).copy())
    np.testing.assert_array_equal(*rows)


def test_two_caches_take_turns_without_disturbing_each_other(session: DecoderSession) -> None:
    texts = [random_ids(30, seed) for seed in (1, 2)]
    caches = [session.new_cache() for _ in texts]
    for position in range(30):
        rows = [session.forward(ids[position : position + 1], cache) for ids, cache in zip(texts, caches, strict=True)]
    for ids, row in zip(texts, rows, strict=True):
        np.testing.assert_allclose(row, session.forward(ids, session.new_cache()), atol=TOLERANCE)


def test_threads_with_caches_of_their_own_get_their_own_logits(session: DecoderSession) -> None:
    expected = {seed: session.forward(random_ids(20, seed), session.new_cache()).copy() for seed in range(8)}
    got = {}

    def work(seed: int) -> None:
        cache = session.new_cache()
        for id_ in random_ids(20, seed):
            got[seed] = session.forward([id_], cache).copy()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, logits_TV in expected.items():
        np.testing.assert_allclose(got[seed], logits_TV, atol=TOLERANCE)


def test_the_context_may_be_filled_to_its_last_token_and_no_further(session: DecoderSession) -> None:
    cache = session.new_cache()
    prefill(session, random_ids(1024), cache)
    assert cache.length == 1024
    with pytest.raises(ContextLengthError, match=r"1025 tokens do not fit the model's context of 1024"):
        session.forward([5], cache)
    with pytest.raises(
        ContextLengthError, match=r"The prompt has 1025 tokens; this model's maximum context length is 1024"
    ):
        prefill(session, random_ids(1025), cache)


def test_an_empty_prompt_is_refused(session: DecoderSession) -> None:
    with pytest.raises(ContextLengthError, match="The prompt has no tokens"):
        prefill(session, [], session.new_cache())


def test_a_broken_graph_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model_path(), folder)
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(PackageError, match=r"model\.onnx is damaged"):
        DecoderSession(folder, ModelConfig.load(folder))

    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["nothing", "nowhere"], ["sum"])], "broken", [], [])
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ProviderError, match=r"ONNX Runtime does not load .*model\.onnx"):
        DecoderSession(folder, ModelConfig.load(folder))


def test_an_onnx_runtime_without_an_operator_is_too_old(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = onnx.helper.make_node("OfTomorrow", [], ["sum"], domain="com.microsoft")
    graph = onnx.helper.make_graph([node], "newer", [], [])
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    (package / "model.onnx").write_bytes(onnx.helper.make_model(graph, opset_imports=imports).SerializeToString())
    monkeypatch.setitem(OPERATORS, "com.microsoft", {*OPERATORS["com.microsoft"], "OfTomorrow"})
    with pytest.raises(ProviderError, match=r'is too old for .*model\.onnx.*`pip install --upgrade "edgelm\[cpu\]"`'):
        DecoderSession(package, ModelConfig.load(package))


def test_a_graph_of_another_model_is_refused() -> None:
    config = ModelConfig.load(tiny_model_path())
    more_layers = ModelConfig.from_dict(config.to_dict() | {"num_hidden_layers": 3})
    with pytest.raises(PackageError, match="has 4 keys and values; by the model's config they are 6"):
        DecoderSession(tiny_model_path(), more_layers)
    kinds = ["full_attention", "conv", "full_attention"]
    with_convolution = ModelConfig.from_dict(more_layers.to_dict() | {"layer_types": kinds, "conv_L_cache": 3})
    with pytest.raises(PackageError, match="has 0 inputs past_conv; by the model's config they are 1"):
        DecoderSession(tiny_model_path(), with_convolution)


def test_a_program_that_gave_onnx_runtime_threads_for_all_sessions_gets_the_same_answer() -> None:
    program = """
import onnxruntime
onnxruntime.set_global_thread_pool_sizes(2, 1)
import edgelm, edgelm.testing
model = edgelm.load(edgelm.testing.tiny_model_path())
print(*model.generate([5, 6, 7], edgelm.GenerationConfig(max_new_tokens=8)).token_ids)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    alone = edgelm.load(tiny_model_path()).generate([5, 6, 7], edgelm.GenerationConfig(max_new_tokens=8))
    assert (tuple(map(int, ended.stdout.split())), ended.stderr) == (alone.token_ids, "")


@pytest.mark.parametrize("threads", [0, 1.5, "2", True, 10**11])
def test_threads_must_be_a_sensible_number(threads: int) -> None:
    with pytest.raises(ConfigError, match=r"threads is .* from 1 to 1024"):
        SessionOptions(threads=threads)


def test_without_onnx_runtime_the_fixes_are_named_and_where_it_is_imported_telemetry_is_off_before() -> None:
    program = """
import importlib.util, os, sys
sys.modules["onnxruntime"] = None
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "onnxruntime" else find_spec(name, *rest)
import edgelm, edgelm.testing
try:
    edgelm.load(edgelm.testing.tiny_model_path())
except edgelm.ProviderError as error:
    assert 'pip install "edgelm[cpu]" on any machine; pip install "edgelm[gpu]" on one' in str(error), error
else:
    sys.exit("no error")
del sys.modules["onnxruntime"]
importlib.util.find_spec = find_spec
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
edgelm.load(edgelm.testing.tiny_model_path())
assert seen and seen[-1] == "1", seen
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_call_that_is_stopped_leaves_its_cache_as_it_was_and_reports_nothing(
    session: DecoderSession, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = random_ids(300)
    cache = session.new_cache()
    session.forward(ids[:100], cache)
    stop = StopSwitch()
    stop.press()
    with pytest.raises(StoppedError):
        session.forward(ids[100:], cache, stop=stop)
    assert capfd.readouterr().err == ""
    assert cache.token_ids == ids[:100]
    fresh = session.new_cache()
    session.forward(ids[:100], fresh)
    expected = session.forward(ids[100:], fresh)
    np.testing.assert_array_equal(session.forward(ids[100:], cache, stop=StopSwitch()), expected)


def test_a_short_text_behind_a_long_one_that_was_stopped_is_as_one_alone(longrope_package: Path) -> None:
    model, ids, stop = edgelm.load(longrope_package, SessionOptions(threads=1)), random_ids(100), StopSwitch()
    cache = model.new_cache()
    model.session.forward(ids[:40], cache)
    stop.press()
    with pytest.raises(StoppedError):  # once what the cache holds was computed again, to turn as a long text does
        model.session.forward(ids[40:], cache, stop=stop)

    short = prefill(model.session, ids[:50], cache)

    np.testing.assert_array_equal(short, prefill(model.session, ids[:50], model.new_cache()))


def test_a_call_is_stopped_while_it_runs(session: DecoderSession) -> None:
    stops = 0
    for delay in (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.005):
        stop = StopSwitch()
        timer = threading.Timer(delay, stop.press)
        timer.start()
        try:
            session.forward(random_ids(1000), session.new_cache(), stop=stop)
        except StoppedError:
            stops += 1
        timer.join()
    assert stops > 0


def test_want_of_memory_stays_what_an_engine_knows_it_by() -> None:
    with pytest.raises(MemoryError, match="no room"):
        raise_as_ours(MemoryError("no room"))
