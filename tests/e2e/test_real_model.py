"""SmolLM2-135M-Instruct through every room: the figures that the tiny model cannot show."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm import ChatSession, GenerationConfig, LanguageModel

pytestmark = pytest.mark.real_model

GREEDY = GenerationConfig(max_new_tokens=24)
SHORT = GenerationConfig(max_new_tokens=8)


@pytest.fixture(scope="module")
def model(smollm2_package: Path) -> LanguageModel:
    return edgelm.load(smollm2_package, edgelm.SessionOptions(threads=1))


def test_int8_is_near_its_source(model: LanguageModel) -> None:
    quality = model.manifest.quality
    assert quality is not None
    # On one window: 0.0031 and 0.0032 measured; 0.0037 without smoothing the head, 0.0073 without any smoothing.
    assert quality.mean_kl_divergence < 0.0036
    # 1.011 of each of the three, and 1.021 of an export with a divergence of 0.0031: 255 tokens tell no less apart. On
    # longer texts it is within a percent.
    assert quality.perplexity < 1.03 * quality.source_perplexity
    assert quality.top1_agreement > 0.93  # 0.96 measured


def test_it_knows_where_it_comes_from(model: LanguageModel) -> None:
    assert model.manifest.license == "Apache-2.0"
    assert model.manifest.source["format"] == "gguf"
    assert len(model.tokenizer.control_token_ids) == 17
    assert model.config.eos_token_ids == (2, 0)  # <|im_end|>, which the file names, and <|endoftext|>


def test_it_answers_in_sentences(model: LanguageModel) -> None:
    reply = model.chat([{"role": "user", "content": "What is the capital of Germany?"}], GREEDY)
    assert "Berlin" in reply.text
    assert reply.finish_reason == "stop"


def test_streamed_characters_are_whole(model: LanguageModel) -> None:
    ids = model.tokenizer.encode("Grüße 👩‍👩‍👧‍👦 你好, 世界! ")
    chunks = list(model.stream(ids * 2, GenerationConfig(max_new_tokens=24)))
    text = "".join(chunk.text for chunk in chunks)
    assert text == model.tokenizer.decode([id_ for chunk in chunks for id_ in chunk.token_ids])


def test_the_second_turn_is_the_same_with_and_without_the_cache(model: LanguageModel) -> None:
    session = ChatSession(model)
    for question in ("Name a color.", "And another one?"):
        answer = "".join(chunk.text for chunk in session.send(question, SHORT))
        fresh = model.chat(session.messages[:-1], SHORT).text
        # A cached token may have come from a one-token step, which sums in another order: the first tokens must agree.
        assert answer[:12] == fresh[:12]


def test_the_same_prompt_gives_the_same_tokens_again_and_by_two_threads(
    model: LanguageModel, smollm2_package: Path
) -> None:
    models = model, model, edgelm.load(smollm2_package, edgelm.SessionOptions(threads=2))
    assert len({by.generate("The sea is", GREEDY).token_ids for by in models}) == 1


def test_fp32_chooses_the_tokens_of_its_source(
    smollm2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source computes in numpy; that this, and PyTorch, choose as transformers does is tested beside each."""
    from edgelm_export.exporter import export_package
    from edgelm_export.sources.sources import open_checkpoint
    from edgelm_export.verification import verify

    # It is checked on a quarter of the text, as larger ones are, in one window, and on a quarter of the tokens.
    for name, value in {"_LARGE": 10**8, "_WINDOWS": 1, "_GREEDY_PROMPT": 24, "_GREEDY_TOKENS": 8}.items():
        monkeypatch.setattr(verify, name, value)
    with open_checkpoint(smollm2_checkpoint) as checkpoint:
        quality = export_package(checkpoint, tmp_path / "fp32", "fp32").quality
    assert quality is not None
    assert quality.max_logit_difference < 1e-3  # 9e-5 measured
    assert quality.greedy_agreement == quality.greedy_tokens == 8


def test_scores_are_perplexities_of_sense(model: LanguageModel) -> None:
    sense, nonsense = (model.score(text).perplexity for text in ("The cat sat on the mat.", "Mat the on sat cat the."))
    assert sense < nonsense / 5


def test_the_peak_memory_of_an_answer_is_a_small_multiple_of_the_package(smollm2_package: Path) -> None:
    program = (
        "import sys, edgelm; model = edgelm.load(sys.argv[1], edgelm.SessionOptions(threads=1)); "
        "model.generate([5] * 512, edgelm.GenerationConfig(max_new_tokens=8, ignore_eos=True)); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(smollm2_package)], capture_output=True, text=True, check=True
    )
    size = sum(path.stat().st_size for path in smollm2_package.iterdir())
    assert int(done.stdout) * 1024 < 3 * size  # 2.3 measured: the packed weights, a copy of the embedding, the cache


def test_logits_are_finite_over_a_long_prompt(model: LanguageModel) -> None:
    ids = np.random.default_rng(0).integers(17, 49152, 300).tolist()
    logits_TV = model.session.forward(ids, model.session.new_cache(), all_logits=True)
    assert len(logits_TV) == 300
    assert np.isfinite(logits_TV).all()
