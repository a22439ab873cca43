"""Embeddings: what is pooled, against transformers' hidden states of the same weights."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from make_tiny_model import make_checkpoint
from model_features import LATENT, LINEAR, config_with

import edgelm
from edgelm.config import ModelConfig
from edgelm.embedding import embed
from edgelm.errors import ConfigError, ContextLengthError
from edgelm.runtime.session import DecoderSession
from edgelm.testing import ScriptedDecoder, scripted_model, tiny_model_path

TEXTS = ["The sea", "The sea is blue. " * 40]  # the second one takes three chunks


@pytest.fixture(scope="module")
def hidden_states(model: edgelm.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """What transformers computes behind the last norm, [T, D] for each text."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers_llama import load_llama

    torch.set_num_threads(1)
    llama = load_llama(make_checkpoint(tmp_path_factory.mktemp("embedding") / "tiny")).model
    with torch.no_grad():
        return [
            llama(torch.tensor([model.tokenizer.encode(text)])).last_hidden_state[0].numpy()
            for text in TEXTS
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("pooling", "pool"), [("mean", lambda rows: rows.mean(axis=0)), ("last", lambda rows: rows[-1])]
)
def test_pooling_takes_the_hidden_states_of_transformers(model, hidden_states, pooling, pool) -> None:
    expected_ND = np.stack([pool(h_TD) for h_TD in hidden_states])
    # Float32 sums in another order; 3e-6 measured.
    np.testing.assert_allclose(model.embed(TEXTS, pooling=pooling, normalize=False), expected_ND, atol=5e-5)
    units_ND = expected_ND / np.linalg.norm(expected_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(TEXTS, pooling=pooling), units_ND, atol=1e-5)


def test_values_are_the_mean_over_the_tokens_of_the_text_alone(model) -> None:
    ids = model.tokenizer.encode("The sea is blue. " * 20)  # the cache's buffers are longer than the text
    cache = model.session.new_cache()
    model.session.forward(ids, cache)
    means = [buffer[0, :, : len(ids)].mean(axis=1).ravel() for buffer in cache.buffers[1::2]]
    expected = np.concatenate(means) / np.linalg.norm(np.concatenate(means))
    # Chunks of 128 against one prefill: rounding; 3e-7 measured.
    np.testing.assert_allclose(model.embed([ids])[0], expected, atol=5e-6)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        # Behind keys (1.0) and values (2.0) of the one layer with attention are the states of the others.
        (LINEAR | {"num_hidden_layers": 2, "layer_types": ("full_attention", "linear_attention")}, [2.0] * 16),
        # What turns stands before a token's values, in the one buffer of a layer.
        (LATENT, [1.0] * 32 + [2.0] * 32),
    ],
    ids=["beside states", "latent"],
)  # fmt: skip
def test_values_are_those_of_attention_whatever_else_a_cache_holds(features: dict, expected: list[float]) -> None:
    class Filled(ScriptedDecoder):
        def forward(self, token_ids, cache, **options):
            logits_TV = super().forward(token_ids, cache, **options)
            for i, buffer in enumerate(cache.buffers):
                buffer[:] = i + 1.0
                buffer[..., : cache.config.head_dim - (cache.config.kv_lora_rank or cache.config.head_dim)] = 9.0
            return logits_TV

    model = scripted_model("hi")
    model.session = Filled(config_with(features), [])
    assert model.embed([[5, 6, 7]], normalize=False).tolist() == [expected]


def test_hidden_states_leave_the_logits_and_the_cache_as_they_are(model) -> None:
    ids = model.tokenizer.encode(TEXTS[0])
    plain, other = model.session.new_cache(), model.session.new_cache()
    model.session.forward(ids, plain)
    model.session.forward_hidden(ids, other)
    assert other.token_ids == ids
    np.testing.assert_array_equal(model.session.forward([7], other), model.session.forward([7], plain))


@pytest.mark.parametrize("pooling", ["values", "mean", "last"])
def test_no_texts_are_no_vectors_of_the_width_of_others(model, pooling) -> None:
    (vector,) = model.embed(["The sea"], pooling=pooling)
    assert (model.embed([], pooling=pooling) @ vector).shape == (0,)


@pytest.mark.parametrize(
    ("texts", "pooling", "error", "words"),
    [
        ("The sea", "mean", ConfigError, "embed takes a list of texts"),
        (["The sea"], "max", ConfigError, "pooling is 'max'; it must be one of values, mean, last"),
        (["The sea"], ["mean"], ConfigError, r"pooling is \['mean'\]; it must be one of"),
        (["The sea", ""], "mean", ContextLengthError, r"^texts\[1\]: The text has too few tokens: 0; it needs 1"),
        (["The sea", "x" * 3000], "last", ContextLengthError, "this model's maximum context length is 1024"),
    ],
)
def test_what_cannot_be_embedded_is_refused(model, texts, pooling, error, words) -> None:
    with pytest.raises(error, match=words):
        model.embed(texts, pooling=pooling)


def test_a_package_without_hidden_states_says_how_to_get_them(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_path(), tmp_path / "old")
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    (output,) = (value for value in graph.graph.output if value.name == "last_hidden_state")
    graph.graph.output.remove(output)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    session = DecoderSession(folder, ModelConfig.load(folder))
    with pytest.raises(ConfigError, match="edgelm export SOURCE -o FOLDER"):
        session.forward_hidden([5, 6], session.new_cache())


def test_a_scripted_model_has_hidden_states_too() -> None:
    assert scripted_model("hi").embed(["The sea"], pooling="last").shape == (1, 32)


def test_the_beginning_of_a_long_text_turns_as_a_long_text_does(
    longrope_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edgelm.load(longrope_package)
    ids = np.random.default_rng(0).integers(3, 320, 100).tolist()
    at_once = embed(model, ids, "mean"), [token.logprob for token in model.score(ids).tokens]
    monkeypatch.setattr("edgelm.embedding.PREFILL_CHUNK", 40)
    monkeypatch.setattr("edgelm.decoding.scoring.PREFILL_CHUNK", 40)
    np.testing.assert_allclose(embed(model, ids, "mean"), at_once[0], atol=1e-4)
    np.testing.assert_allclose([token.logprob for token in model.score(ids).tokens], at_once[1], atol=1e-4)
