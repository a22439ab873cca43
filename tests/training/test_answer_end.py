"""A model that learned to end its answers with a token of their own stops behind it, whatever ended texts before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from make_tiny_model import CONFIG, make_checkpoint

from edgelm.config import ModelConfig
from edgelm_training.checkpoints.answer_end import with_end_of_answers
from edgelm_training.finetune import finetune
from edgelm_training.merge import merge_adapter
from edgelm_training.pretrain import pretrain

END_OF_TEXT, END_OF_TURN = 0, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, whose texts end with another token than the turns of its chat template."""
    config = replace(CONFIG, max_position_embeddings=128, eos_token_ids=(END_OF_TEXT,))
    return make_checkpoint(tmp_path_factory.mktemp("base") / "ckpt", config)


@pytest.mark.parametrize(
    ("known", "found"),
    [
        ((END_OF_TEXT,), (END_OF_TEXT, END_OF_TURN)),
        ((END_OF_TURN, END_OF_TEXT), (END_OF_TURN, END_OF_TEXT)),
        ((), (END_OF_TURN,)),
    ],
)
def test_the_end_of_a_turn_stands_behind_the_ends_that_are_known(
    known: tuple[int, ...], found: tuple[int, ...], base: Path
) -> None:
    assert with_end_of_answers(known, base) == found


def test_a_line_s_end_behind_the_end_of_a_turn_may_be_learned_too(base: Path, tmp_path: Path) -> None:
    shutil.copy(base / "tokenizer.json", tmp_path)
    asked = "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% else %}"
    answered = "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% endif %}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(asked + answered)  # as SmolLM3's
    assert with_end_of_answers((END_OF_TEXT,), tmp_path) == (END_OF_TEXT, END_OF_TURN)


TEMPLATES = {
    "none": None,
    "one of text alone": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '. ' }}{% endfor %}",
    "one that fails": "{{ raise_exception('No.') }}",
    "one that is broken": "{% for",
    "one that writes no answer": "Hi",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_without_a_token_at_the_end_of_an_answer_nothing_is_added(kind: str, base: Path, tmp_path: Path) -> None:
    shutil.copy(base / "tokenizer.json", tmp_path)
    if (source := TEMPLATES[kind]) is not None:
        (tmp_path / "chat_template.jinja").write_text(source)
    assert with_end_of_answers((END_OF_TEXT,), tmp_path) == (END_OF_TEXT,)


def of_the_whole(base: Path, shards: Path, given: dict[str, Any], folder: Path) -> Path:
    finetune({**given, "method": "sft"})
    return folder / "run/latest"


def of_an_adapter(base: Path, shards: Path, given: dict[str, Any], folder: Path) -> Path:
    finetune({**given, "method": "lora", "rank": 2})
    return merge_adapter(folder / "run", folder / "merged").output


def of_a_new_one(base: Path, shards: Path, given: dict[str, Any], folder: Path) -> Path:
    kept = {name: given[name] for name in ("output", "max_steps", "global_batch_size", "threads", "eval_every")}
    pretrain({**kept, "data": str(shards), "params": "30K", "sequence_length": 32, "sample_every": 0})
    return folder / "run/latest"


@pytest.mark.parametrize("trained", [of_the_whole, of_an_adapter, of_a_new_one])
def test_a_trained_model_stops_behind_its_answers(
    trained: Callable[..., Path], base: Path, tiny_shards: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    given = {
        "model": str(base), "data": (str(tiny_chats),), "output": str(tmp_path / "run"),
        "max_steps": 1, "global_batch_size": 1, "eval_every": 0, "threads": 1,
    }  # fmt: skip
    checkpoint = trained(base, tiny_shards, given, tmp_path)
    assert ModelConfig.load(checkpoint).eos_token_ids == (END_OF_TEXT, END_OF_TURN)
