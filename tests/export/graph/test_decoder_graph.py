"""The contract between model.py (PyTorch) and the graphs of both kinds of operators: a row for each feature."""

import dataclasses
import gc
import re
import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from make_tiny_model import CONFIG, make_checkpoint
from model_features import FEATURES, config_with
from numpy.typing import NDArray
from package_logits import distance

from edgelm.architecture.layer_features import LAYER_TYPES, NORM_PLACEMENTS
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.config import ACTIVATIONS, GATE_ACTIVATIONS, NORMS, POSITIONS, QK_NORM_SCOPES, SCORING_FUNCS, ModelConfig
from edgelm.decoding.generate import prefill
from edgelm.errors import ConfigError, ExportError
from edgelm.runtime.session import DecoderSession
from edgelm_export.checkpoints.checked import CheckedCheckpoint
from edgelm_export.decoder import DecoderStack, build_decoder, folded
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.layers.projection import Projections
from edgelm_export.quantize.sensitivity import matrices
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.standard_decoder import build_standard_decoder
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.model import Transformer, generate

# Float32 through a few layers, in another order of sums; the largest difference seen is 1.3e-5.
TOLERANCE = 1e-4
IDS = np.random.default_rng(0).integers(3, CONFIG.vocab_size, 150).tolist()


def export(folder: Path, config: ModelConfig, precision: str) -> tuple[HuggingFaceCheckpoint, DecoderSession]:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", config, seed=1))
    checked = CheckedCheckpoint(checkpoint, None)
    with ExternalData(folder / "model.onnx.data") as data:
        model = build_decoder(checked, PRECISIONS[precision], data)
    checked.refuse_unread()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return checkpoint, DecoderSession(folder, config)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The checkpoint of a row of FEATURES, its graph in fp32, the model of PyTorch, and its logits of `IDS`."""

    name: str
    folder: Path
    checkpoint: HuggingFaceCheckpoint
    session: DecoderSession
    transformer: Transformer

    @cached_property
    def logits_TV(self) -> NDArray[np.float32]:  # noqa: N802  (a shape)
        with torch.no_grad():
            return self.transformer(torch.tensor([IDS]))[0].numpy()


@pytest.fixture(scope="module")
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Row:
    """The row that a test is parametrized with; pytest runs all tests of one after each other, and makes it once."""
    folder = tmp_path_factory.mktemp("row")
    checkpoint, session = export(folder, config_with(FEATURES[request.param]), "fp32")
    transformer = load_checkpoint(folder / "checkpoint")
    return Row(name=request.param, folder=folder, checkpoint=checkpoint, session=session, transformer=transformer)


# What no graph computes otherwise, or is compared elsewhere: sizes, tokens, and the fields of models with an encoder.
_COMPARED_ELSEWHERE = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "bos_token_id",
    "eos_token_ids", "suppressed_token_ids", "kv_cache", "encoder", "own_embedding", "decoder_start_token_id",
    "forced_bos_token_id",
}  # fmt: skip
_WORDS: dict[str, Iterable[str]] = {
    "norm": NORMS, "position": POSITIONS, "hidden_act": ACTIVATIONS, "qk_norm_scope": QK_NORM_SCOPES,
    "scoring_func": SCORING_FUNCS, "attention_gate_act": GATE_ACTIVATIONS, "norm_placement": NORM_PLACEMENTS,
}  # fmt: skip


def test_every_field_and_every_word_of_a_config_has_a_row() -> None:
    configs = [config_with(features) for features in FEATURES.values()]
    used = {field.name: {getattr(config, field.name) for config in configs} for field in dataclasses.fields(CONFIG)}
    assert {name for name, values in used.items() if len(values) == 1} == _COMPARED_ELSEWHERE
    assert [(name, word) for name, words in _WORDS.items() for word in words if word not in used[name]] == []
    assert {kind for config in configs for kind in config.layer_types} == set(LAYER_TYPES)


_WITHOUT_EFFECT = {("a window as long as the context", "sliding_window")}


@pytest.mark.parametrize("row", FEATURES, indirect=True)
def test_a_field_that_no_tensor_is_of_changes_what_the_model_computes(row: Row) -> None:
    """Else it may be forgotten in PyTorch, numpy and ONNX alike, which then agree."""
    config = row.transformer.config
    for field in FEATURES[row.name]:
        try:
            other = dataclasses.replace(config, **{field: getattr(CONFIG, field)})
        except ConfigError:  # other fields of the row need it
            continue
        if other == config or other.tensor_shapes() != config.tensor_shapes():
            continue
        with torch.device("meta"):  # where no random numbers are drawn for the weights
            without = Transformer(other).eval()
        without.load_state_dict(row.transformer.state_dict(), assign=True)
        with torch.no_grad():
            is_same = np.array_equal(row.logits_TV, without(torch.tensor([IDS]))[0].numpy())
        assert is_same == ((row.name, field) in _WITHOUT_EFFECT), field


@pytest.mark.parametrize("row", FEATURES, indirect=True)
def test_the_graph_gives_the_logits_of_pytorch(row: Row) -> None:
    session, expected_TV = row.session, row.logits_TV
    (numpy_TV,) = reference_logits(row.checkpoint, [IDS])
    np.testing.assert_allclose(numpy_TV, expected_TV, atol=TOLERANCE)
    at_once_TV = session.forward(IDS, session.new_cache(), all_logits=True)
    np.testing.assert_allclose(at_once_TV, expected_TV, atol=TOLERANCE)
    # Chunks of 128 and the rest, then one token at a time: the cached positions must count.
    cache = session.new_cache()
    np.testing.assert_allclose(prefill(session, IDS[:147], cache), expected_TV[146], atol=TOLERANCE)
    for position in range(147, 150):
        logits_TV = session.forward(IDS[position : position + 1], cache)
        np.testing.assert_allclose(logits_TV[0], expected_TV[position], atol=TOLERANCE)


EXPRESSIBLE = [
    name
    for name, features in FEATURES.items()
    if ("num_experts" not in features or "hidden_act" in features) and "linear_num_key_heads" not in features
]


@pytest.mark.parametrize("row", EXPRESSIBLE, indirect=True)
def test_the_graph_in_operators_of_the_standard_gives_them_too(row: Row, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with ExternalData(tmp_path / "model.onnx.data") as data:
        model = build_standard_decoder(row.checkpoint, PRECISIONS["fp32"].with_standard_operators(), data)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(path, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    session = DecoderSession(tmp_path, row.checkpoint.config)
    at_once_TV, cache = session.forward(IDS, session.new_cache(), all_logits=True), session.new_cache()
    np.testing.assert_allclose(at_once_TV, row.logits_TV, atol=TOLERANCE)
    cache.reserve(len(IDS))  # with LongRoPE, a text turns by how long it is to be
    # In two chunks, then one token at a time: the cached positions must count.
    for start, end in [(0, 60), (60, 147), *((each, each + 1) for each in range(147, 150))]:
        logits_TV = session.forward(IDS[start:end], cache, all_logits=True)
        np.testing.assert_allclose(logits_TV, row.logits_TV[start:end], atol=TOLERANCE)


# A row for each thing that a step takes from the steps before it; which logits steps have, the contract says of all.
_REMEMBERED = (
    "tiny", "rope longrope, within the original context", "a window in every layer", "convolutions",
    "latent attention", "linear attention", "Mamba", "Mamba 2 beside attention, with biases and multipliers",
    "keys and values of earlier layers, with wider feed-forwards", "relative positions", "learned positions",
)  # fmt: skip


@pytest.mark.parametrize("row", _REMEMBERED, indirect=True)
def test_the_fast_loop_chooses_the_tokens_of_the_naive_one(row: Row) -> None:
    session, transformer = row.session, row.transformer
    ids = np.random.default_rng(1).integers(3, session.config.vocab_size, 20).tolist()
    naive = generate(transformer, ids, 12)
    cache = session.new_cache()
    logits_V = prefill(session, ids, cache)
    fast = []
    for _ in naive:
        assert logits_V is not None
        fast.append(int(logits_V.argmax()))
        logits_V = session.forward(fast[-1:], cache)[0]
    assert fast == naive


@pytest.mark.parametrize("features", ["learned positions", "relative positions", "Mamba", "experts"])
def test_a_recipe_is_asked_about_the_matrices_of_which_it_is_said_to_decide(
    features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked, read = config_with(FEATURES[features]), [], Projections.read
    monkeypatch.setattr(Projections, "read", lambda self, name: (asked.append(name), read(self, name))[1])
    export(tmp_path, config, "fp32")
    assert sorted(asked) == sorted(matrices(config))


# Relative to the logits. Seen: up to 0.047, 0.200 and 8e-7; a wrong scale or order of nibbles gives 1 or more.
@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.1), ("int4", 0.3), ("keep", TOLERANCE)])
@pytest.mark.parametrize("name", ["tiny", "untied head", "biases", "query and key norms", "plain feed-forward"])
def test_a_quantized_graph_stays_near_its_source(name: str, precision: str, bound: float, tmp_path: Path) -> None:
    layers = 4 if precision == "int4" else 2  # which keeps the outer ones in 8 bits
    config = config_with({"hidden_size": 128, "num_hidden_layers": layers, **FEATURES[name]})
    _, session = export(tmp_path, config, precision)
    ids = list(range(3, 60))
    with torch.no_grad():
        expected_TV = load_checkpoint(tmp_path / "checkpoint")(torch.tensor([ids]))[0].numpy()
    got_TV = session.forward(ids, session.new_cache(), all_logits=True)
    assert distance(got_TV, expected_TV) < bound


@pytest.mark.parametrize("name", ["biases", "query and key norms"])
def test_query_key_and_value_may_be_stored_by_different_schemes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = (Rule(pattern=r"v_proj", scheme="fp32"), Rule(pattern=r".", scheme="int8-block64"))
    monkeypatch.setitem(PRECISIONS, "mixed", Precision(rules=rules, perplexity_bound=1.03))
    config = config_with({"hidden_size": 128, **FEATURES[name]})
    _, session = export(tmp_path, config, "mixed")
    ids = list(range(3, 60))
    with torch.no_grad():
        expected_TV = load_checkpoint(tmp_path / "checkpoint")(torch.tensor([ids]))[0].numpy()
    got_TV = session.forward(ids, session.new_cache(), all_logits=True)
    assert distance(got_TV, expected_TV) < 0.1  # as int8 above; seen: 0.030


def test_initializers_have_the_names_of_the_checkpoint(tmp_path: Path) -> None:
    export(tmp_path, CONFIG, "int8")
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.self_attn.qkv_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.gate_up_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
    } <= names


@pytest.mark.parametrize(
    ("placement", "norms_alone"),
    [("pre", 1), ("both", 1 + 2 * CONFIG.num_hidden_layers), ("shared", 1), ("post", 2 * CONFIG.num_hidden_layers)],
)
def test_a_sum_and_the_norm_that_reads_it_are_one_operator(placement: str, norms_alone: int, tmp_path: Path) -> None:
    features = {"norm_placement": placement, "parallel_residual": placement == "shared"}
    export(tmp_path, config_with(features), "fp32")
    nodes = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes)
    sums = 2 * CONFIG.num_hidden_layers
    assert counts["SkipSimplifiedLayerNormalization"] + counts["Add"] == sums
    assert counts["SimplifiedLayerNormalization"] == norms_alone


def test_a_tied_head_and_embedding_are_one_tensor_on_disk(tmp_path: Path) -> None:
    for name, tied in (("tied", True), ("untied", False)):
        (tmp_path / name).mkdir()
        export(tmp_path / name, config_with({"vocab_size": 4096, "tie_word_embeddings": tied}), "int8")
    sizes = {name: (tmp_path / name / "model.onnx.data").stat().st_size for name in ("tied", "untied")}
    assert sizes["untied"] - sizes["tied"] >= 4096 * 32


def test_what_a_graph_was_made_of_is_given_back_at_once(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", CONFIG, seed=1))
    gc.disable()  # which would find the embedding later, when the package stands beside it
    try:
        with ExternalData(tmp_path / "model.onnx.data") as data:
            stack = DecoderStack(folded(checkpoint), PRECISIONS["int4"], data)
            stack.build()
        left = weakref.ref(stack)
        del stack
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"head_dim": 12}, r"head_dim is 12; .* takes heads of a multiple of 8\. Export it .*--operators standard"),
        ({"head_dim": 4, "position": "learned"}, r"head_dim is 4; .* takes heads of a multiple of 8"),
    ],
)
def test_a_head_that_the_operator_cannot_compute_is_refused_by_name(
    features: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(tmp_path, config_with(features), "fp32")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_was_read_of_the_embedding_leaves_memory_when_the_cache_grows(tmp_path: Path) -> None:
    def resident() -> int:
        path = re.escape(str(tmp_path / "model.onnx.data"))
        mappings = Path("/proc/self/smaps").read_text()
        return sum(map(int, re.findall(rf" {path}\n(?:[A-Z].*\n)*?Rss: +(\d+) kB", mappings)))

    config = dataclasses.replace(CONFIG, vocab_size=1 << 18)
    _, session = export(tmp_path, config, "int8")
    cache, ids = session.new_cache(), np.random.default_rng(2).integers(3, config.vocab_size, 129).tolist()
    session.forward(ids[:-1], cache)
    before = resident()
    assert before > 1000  # of 8 MB, what is around the rows of 128 tokens
    session.forward(ids[-1:], cache)
    assert resident() < before / 2
    session.forward(ids[:-1], session.new_cache())
    assert resident() > before / 2
    session.reserve(session.new_cache(), 5)
    assert resident() < before / 2
