import numpy as np
import pytest

import edgelm
from edgelm.embedding import Pooling
from edgelm.testing import ScriptedDecoder, scripted_model


@pytest.mark.parametrize("prompt", ["Hello!", "Say Hello", "H", "The sea"])
def test_the_script_is_the_answer_whatever_the_prompt_ends_with(prompt: str) -> None:
    model = scripted_model("Hello!")
    assert model.generate(prompt).text == "Hello!"
    assert [answer.text for answer in model.generate_batch([prompt, prompt])] == ["Hello!", "Hello!"]
    with edgelm.Engine(model) as engine:
        assert edgelm.join(engine.submit(prompt)).text == "Hello!"


def test_a_script_that_begins_as_the_chat_template_ends_is_said_in_each_turn() -> None:
    session = edgelm.ChatSession(scripted_model("\nFine. Fine."))
    for said in ("How are you?", "\nFine.", "\nFine. Fine."):
        assert "".join(chunk.text for chunk in session.send(said)) == "\nFine. Fine."


def test_a_scripted_model_takes_prompts_and_answers_as_long_as_its_context() -> None:
    answer, passages = "a wave " * 200, "The sea is blue. " * 200
    with pytest.raises(edgelm.ContextLengthError, match="maximum context length is 1024"):
        scripted_model(answer).generate(passages)
    model = scripted_model(answer, context_length=20_000)
    said = model.chat([{"role": "user", "content": passages}])
    assert (said.text, said.finish_reason) == (answer, "stop")
    with pytest.raises(edgelm.ConfigError, match="max_position_embeddings is 0"):
        scripted_model(answer, context_length=0)


def test_a_scripted_decoder_lists_the_last_calls_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgelm.testing, "_MOST_CALLS", 3)
    model = scripted_model("Hello!")
    model.generate("The sea")
    assert isinstance(model.session, ScriptedDecoder)
    assert model.session.forwarded == [[id_] for id_ in model.tokenizer.encode("Hello!")[-3:]]


@pytest.mark.parametrize("pooling", ["values", "mean", "last"])
def test_a_scripted_model_embeds_texts_as_vectors_of_length_1(pooling: Pooling) -> None:
    vectors = scripted_model("Hello!").embed(["abc", "abc", "xyz"], pooling=pooling)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[0], vectors[2])
