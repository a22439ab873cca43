"""Heads with a shortlist: half of their bits for all tokens, all bits for the best."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from model_features import FEATURES, config_with

import edgelm
from edgelm.architecture.quantization_recipe import Precision, Rule, precision_named
from edgelm.architecture.quantization_scheme import parse_scheme
from edgelm.architecture.shortlist import SHORTLISTED_POSITIONS
from edgelm.errors import ExportError
from edgelm.memory.kv_cache import BLOCK
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime import binding
from edgelm.runtime.session import DecoderSession
from edgelm.runtime.stop_switch import StoppedError
from edgelm_export.checkpoints.tensor_map import EMBEDDING
from edgelm_export.exporter import export_package
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import Graph
from edgelm_export.graph.shortlist import SHORTLIST_SIZE, group_size
from edgelm_export.layers.packed_operators import NBits
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.quantize.channel_scales import ScaledCheckpoint, ScaledHead
from edgelm_export.quantize.folding import choose_scales
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.quantize.stored import quantize
from edgelm_export.quantize.two_planes import in_two_planes
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

SCHEME = "int8-block64-shortlist"
VOCABULARY, WIDTH = 102_400, 64
LARGE = dataclasses.replace(CONFIG, vocab_size=VOCABULARY)
RECIPE = Precision(rules=(Rule(pattern="embed_tokens", scheme=SCHEME), Rule(pattern=".", scheme="fp32")))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def head() -> PackedWeight:
    return in_two_planes(random(VOCABULARY, WIDTH), parse_scheme(SCHEME), None)


def session_of(folder: Path, weight: PackedWeight) -> onnxruntime.InferenceSession:
    with ExternalData(folder / "data") as data:
        graph = Graph(data)
        output = NBits().product(graph, "x", NBits().store(graph, "w", weight), weight, "y")
        graph.input("x", onnx.TensorProto.FLOAT, ["B", "T", WIDTH])
        graph.output(output, onnx.TensorProto.FLOAT, ["B", "T", "V"])
    (folder / "model.onnx").write_bytes(graph.model("test").SerializeToString())
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def logits_of(folder: Path, weight: PackedWeight, hidden: np.ndarray) -> np.ndarray:
    return session_of(folder, weight).run(None, {"x": hidden})[0]


@pytest.fixture(scope="module")
def session(head: PackedWeight, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    return session_of(tmp_path_factory.mktemp("shortlist"), head)


def test_the_planes_together_are_a_weight_of_8_bits(head: PackedWeight) -> None:
    weight = random(VOCABULARY, WIDTH)
    upper = unpack(dataclasses.replace(head, remainder=None))
    errors = [np.abs(stored - weight).max() / np.abs(weight).max() for stored in (upper, unpack(head))]
    # A step of 4 bits is an eighth of the largest, and at most as much is left; half a step of that again is a 128th.
    assert errors[0] > 1 / 20
    assert errors[1] < 1 / 128
    assert head.nbytes == VOCABULARY * WIDTH * (8 + 2 * 16 / 64) / 8


def test_the_best_tokens_have_the_logits_of_8_bits_and_the_others_those_of_4(
    head: PackedWeight, session: onnxruntime.InferenceSession, tmp_path: Path
) -> None:
    hidden = random(2, 3, WIDTH, seed=1)
    upper = logits_of(tmp_path, dataclasses.replace(head, remainder=None), hidden)
    missing = hidden @ unpack(head.remainder).T
    (got,) = session.run(None, {"x": hidden})
    changed = got != upper
    assert (changed.sum(-1) == SHORTLIST_SIZE).all()
    np.testing.assert_allclose(got[changed], (upper + missing)[changed], atol=1e-4)
    for changed_V, upper_V in zip(changed.reshape(-1, VOCABULARY), upper.reshape(-1, VOCABULARY), strict=True):
        # Those that are left out stand in groups whose best is far behind.
        assert changed_V[np.argsort(-upper_V)[: SHORTLIST_SIZE // 4]].all()


def test_only_the_last_positions_have_shortlists(
    head: PackedWeight, session: onnxruntime.InferenceSession, tmp_path: Path
) -> None:
    hidden = random(1, SHORTLISTED_POSITIONS + 3, WIDTH, seed=3)
    changed = session.run(None, {"x": hidden})[0] != logits_of(
        tmp_path, dataclasses.replace(head, remainder=None), hidden
    )
    assert changed.sum(-1).ravel().tolist() == [0] * 3 + [SHORTLIST_SIZE] * SHORTLISTED_POSITIONS


def test_the_upper_plane_is_better_where_it_is_known_what_the_head_meets() -> None:
    weight = random(2048, WIDTH)
    met = random(256, 8, seed=4) @ random(8, WIDTH, seed=5)  # of few directions, as hidden states nearly are
    plain, calibrated = (in_two_planes(weight, parse_scheme(SCHEME), known) for known in (None, met.T @ met))
    errors = [
        np.linalg.norm(met @ (unpack(dataclasses.replace(each, remainder=None)) - weight).T)
        for each in (plain, calibrated)
    ]
    assert errors[1] < 0.5 * errors[0]  # measured: 0.21
    assert np.abs(unpack(calibrated) - weight).max() < 0.03 * np.abs(weight).max()  # measured: 0.01


def test_where_a_text_is_run_it_is_known_what_the_stored_head_meets_there(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", LARGE))
    sequences = [list(range(5, 45)), list(range(60, 70))]
    recipe = precision_named("int8-wide").recipe(LARGE)
    scales = choose_scales(checkpoint, "smooth", recipe, sequences, lambda *_: None)
    assert scales.head_hessian is not None
    head_VD = ScaledHead(ScaledCheckpoint(checkpoint, scales)).rows(EMBEDDING, 0, VOCABULARY)
    # Products of what is met and the head are the logits.
    wanted_V = sum(np.square(logits_TV).sum(0) for logits_TV in reference_logits(checkpoint, sequences))
    np.testing.assert_allclose(((head_VD @ scales.head_hessian) * head_VD).sum(-1), wanted_V, rtol=1e-3)


def test_a_package_scores_as_it_decodes_and_is_read_back(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", LARGE))
    manifest = export_package(checkpoint, tmp_path / "package", RECIPE)
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence < 0.01  # measured: 0.0034, as random weights have no likely tokens
    model = edgelm.load(tmp_path / "package")
    ids = np.random.default_rng(0).integers(0, 200, 2 * SHORTLISTED_POSITIONS + 5).tolist()
    steps, cache = [], model.new_cache()
    for id_ in ids[:-1]:
        logits_V = model.session.forward([id_], cache)[0].astype(np.float64)
        steps.append(logits_V - np.logaddexp.reduce(logits_V))
    scored = [token.logprob for token in model.score(ids).tokens]
    wanted = [step_V[id_] for step_V, id_ in zip(steps, ids[1:], strict=True)]
    np.testing.assert_allclose(scored, wanted, atol=1e-4)
    with PackageCheckpoint(tmp_path / "package") as package:
        assert package.fewest_bits == 8
        assert package.grid(EMBEDDING) == SCHEME
        assert package.quantized_blocks(EMBEDDING) is None  # so "keep" rounds both together
        wanted_VD, got_VD = (each.tensor(EMBEDDING) for each in (checkpoint, package))
        assert np.linalg.norm(got_VD - wanted_VD) < 0.01 * np.linalg.norm(wanted_VD)


@dataclasses.dataclass(frozen=True)
class HeadAlone:
    """What `quantize` asks of a checkpoint where it stores the head."""

    weight_VD: np.ndarray
    config = LARGE
    head_hessian = None

    def tensor(self, name: str) -> np.ndarray:
        return self.weight_VD

    def rows(self, name: str, first: int, end: int) -> np.ndarray:
        return self.weight_VD[first:end]


def test_a_head_that_was_trained_on_the_grid_of_8_bits_stays_on_it() -> None:
    weight = random(VOCABULARY, WIDTH)
    weight[:32] = 0  # tokens that nobody has used lie on every grid
    assert quantize(HeadAlone(weight), EMBEDDING, SCHEME).remainder is not None
    on_grid = unpack(quantize_alone(weight, dataclasses.replace(parse_scheme(SCHEME), method="rounded")))
    stored = quantize(HeadAlone(on_grid), EMBEDDING, SCHEME)
    assert stored.remainder is None
    assert np.array_equal(unpack(stored), on_grid)


def test_texts_of_a_model_whose_experts_are_gathered_too_are_not_scored_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with(FEATURES["experts chosen in groups"])
    export_package(
        HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config)), tmp_path / "package", "fp32"
    )
    graph = onnx.load_model(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    assert "GatherElements" in {node.op_type for node in graph.node}
    session = edgelm.load(tmp_path / "package").session
    monkeypatch.setattr(session, "_forward_in_pieces", None)
    ids = range(2 * SHORTLISTED_POSITIONS)
    assert len(session.forward(ids, session.new_cache(), all_logits=True)) == len(ids)


@pytest.fixture(scope="module")
def with_states(tmp_path_factory: pytest.TempPathFactory) -> DecoderSession:
    """A session whose texts have states, and which scores them in pieces."""
    folder = tmp_path_factory.mktemp("states")
    checkpoint = make_checkpoint(folder / "checkpoint", config_with(FEATURES["linear attention"]))
    export_package(HuggingFaceCheckpoint(checkpoint), folder / "package", "fp32")
    session = edgelm.load(folder / "package").session
    session._graph.facts = dataclasses.replace(session._graph.facts, has_shortlist=True)
    return session


def test_a_text_with_states_that_is_scored_in_pieces_is_kept_for_others_by_whole_blocks(
    with_states: DecoderSession,
) -> None:
    """In an answer a form may make a text of this length come, behind any number of tokens."""
    ids, cache, prefixes = range(4 * BLOCK), with_states.new_cache(), PrefixCache(with_states.config)
    with_states.forward(ids[:BLOCK], cache)
    cache.take_snapshot()
    with_states.forward(ids[BLOCK : BLOCK + 9], cache)
    with_states.forward(ids[BLOCK + 9 : -9], cache, all_logits=True)
    prefixes.keep(cache, BLOCK)

    other = with_states.new_cache()
    assert prefixes.fill(other, ids) == BLOCK
    alone = with_states.new_cache()
    with_states.forward(ids[:BLOCK], alone)
    assert np.array_equal(with_states.forward(ids[BLOCK:], other), with_states.forward(ids[BLOCK:], alone))


def test_a_text_with_states_whose_scoring_is_stopped_between_pieces_leaves_the_cache_as_before(
    with_states: DecoderSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = with_states
    ids, cache = range(3 * SHORTLISTED_POSITIONS), session.new_cache()
    session.forward(ids[:9], cache)
    before, run, runs = [state.copy() for state in cache.other_buffers], binding.Graph._run, []

    def stopped(graph: object, bound: object, stop: object) -> None:
        runs.append(stop)
        if len(runs) == 3:
            raise StoppedError
        run(graph, bound, stop)

    monkeypatch.setattr(binding.Graph, "_run", stopped)
    with pytest.raises(StoppedError):
        session.forward(ids, cache, all_logits=True)
    assert list(cache.token_ids) == list(ids[:9])
    assert not cache.snapshots.states
    for state, kept in zip(cache.other_buffers, before, strict=True):
        assert np.array_equal(state, kept)


def test_a_layer_that_is_given_a_shortlist_is_8_bits_where_others_are_calibrated_too(tmp_path: Path) -> None:
    rules = (Rule(pattern="mlp", scheme="int4-block32-gptq"), Rule(pattern=".", scheme=SCHEME))
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    export_package(
        checkpoint, tmp_path / "package", Precision(rules=rules), calibration=CalibrationOptions(max_tokens=64)
    )
    with PackageCheckpoint(tmp_path / "package") as package:
        assert package.grid("model.layers.0.self_attn.q_proj.weight") == "int8-block64"


def test_a_small_head_is_read_at_once(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    export_package(checkpoint, tmp_path / "package", RECIPE)
    graph = onnx.load_model(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    assert "GatherElements" not in {node.op_type for node in graph.node}
    with PackageCheckpoint(tmp_path / "package") as package:
        assert package.grid(EMBEDDING) == "int8-block64"


@pytest.mark.parametrize(("vocabulary", "size"), [(128256, 16), (50257, 29), (262144, 16), (49999, None)])
def test_groups_divide_the_vocabulary(vocabulary: int, size: int | None) -> None:
    assert group_size(vocabulary) == size


def test_a_shortlist_is_for_8_symmetric_bits_in_operators_of_onnx_runtime() -> None:
    with pytest.raises(ExportError, match=r"A shortlist is for symmetric integers of 8 bits, .* not for int4-block32"):
        parse_scheme("int4-block32-shortlist")
    with pytest.raises(ExportError, match="not written for a shortlist"):
        dataclasses.replace(RECIPE, operators="standard")
    standard = precision_named("int8-wide").with_standard_operators()
    assert standard.rules[0].scheme == "int8-block128"
    assert precision_named("int4").calibrated().rules[0].scheme == "int8-block128-shortlist"
