"""Fine-tuning a model with an encoder: rows by hand, a run that learns and ends as a package, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from make_tiny_model import CONFIG, make_checkpoint
from tiny_training_runs import assert_same_run_but_for_extra_saves, finetune_settings, losses, stop_at
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn import functional
from unchecked_export import export_unchecked

import edgelm
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, DataError
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.sources.sources import open_checkpoint
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.evaluation.inspection import inspect_text
from edgelm_training.finetune import finetune
from edgelm_training.merge import merge_adapter
from edgelm_training.model import generate
from edgelm_training.rows.batches import NO_TARGET, PADDING
from edgelm_training.rows.source_rows import SourceRows, load_pairs

STACK = replace(CONFIG, position="relative", num_key_value_heads=2, max_position_embeddings=64)
PAIR = replace(STACK, encoder=STACK, decoder_start_token_id=0)


@pytest.fixture(scope="module")
def pair_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("pair") / "ckpt", PAIR)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(scope="module")
def tokenizer(pair_model: Path) -> Tokenizer:
    return Tokenizer.load(pair_model)


def write_pairs(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": source, "completion": answer}) + "\n" for source, answer in pairs))
    return path


def rows_of(path: Path, model: Path, config: ModelConfig = PAIR, length: int = 64) -> SourceRows:
    chats, _ = load_pairs([path], model, config)
    return SourceRows(chats, sequence_length=length, seed=0, begin=len(config.decoder_prompt_ids))


def test_a_row_has_the_source_what_the_decoder_begins_with_and_the_answer_to_its_end(
    pair_model: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", ("the sea", "blue"), ("a", "grey and white"))
    config = replace(PAIR, forced_bos_token_id=7)
    rows = rows_of(path, pair_model, config)
    batch = rows.batch(0, 2)
    assert rows.rows_per_epoch == 2
    for row in range(2):
        place = int(rows.describe(row).rpartition(":")[2])
        source, answer = (("the sea", "blue"), ("a", "grey and white"))[place - 1]
        source_ids, answer_ids = tokenizer.encode(source), [*tokenizer.encode(answer), 2]
        assert batch.sources_BS is not None
        kept = batch.sources_BS[row][batch.sources_BS[row] != PADDING]
        assert kept.tolist() == source_ids
        length = len(answer_ids) + 1
        assert batch.ids_BT[row, :length].tolist() == [0, 7, *answer_ids[:-1]]
        assert batch.targets_BT[row].tolist() == [
            NO_TARGET, *answer_ids, *[NO_TARGET] * (batch.targets_BT.shape[1] - length),
        ]  # fmt: skip


@pytest.mark.parametrize("forced", [None, 7])
def test_an_empty_answer_is_its_end_alone(forced: int | None, pair_model: Path, tmp_path: Path) -> None:
    config = replace(PAIR, forced_bos_token_id=forced)
    batch = rows_of(write_pairs(tmp_path / "pairs.jsonl", ("the sea", "")), pair_model, config).batch(0, 1)
    assert batch.ids_BT.tolist() == [[*config.decoder_prompt_ids]]
    assert batch.targets_BT.tolist() == [[*[NO_TARGET] * (len(config.decoder_prompt_ids) - 1), 2]]


def test_what_the_tokenizer_puts_around_a_text_is_not_there_twice(
    pair_model: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = shutil.copytree(pair_model, tmp_path / "model")
    rust = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    names = ("<|im_start|>", "<|im_end|>")
    rust.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[(name, rust.token_to_id(name)) for name in names]
    )
    rust.save(str(folder / "tokenizer.json"))
    begin, end = (rust.token_to_id(name) for name in names)
    config = replace(PAIR, forced_bos_token_id=begin, eos_token_ids=(end,))

    chats, _ = load_pairs([write_pairs(tmp_path / "pairs.jsonl", ("the sea", "blue"))], folder, config)

    ids, learned = chats[0]
    assert ids[learned].tolist() == [*tokenizer.encode("blue"), end]
    assert ids[~learned].tolist() == [begin, *tokenizer.encode("the sea"), end, *config.decoder_prompt_ids]


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelConfig, dict[str, int]]:
    """A checkpoint whose tokenizer puts the language before a source and its end behind it, as NLLB's does."""
    size = CONFIG.vocab_size + 3
    stack = replace(STACK, vocab_size=size)
    config = replace(stack, encoder=stack, decoder_start_token_id=2)
    folder = make_checkpoint(tmp_path_factory.mktemp("translator") / "ckpt", config)
    (folder / "chat_template.jinja").unlink()
    path = str(folder / "tokenizer.json")
    rust = RustTokenizer.from_file(path)
    rust.add_special_tokens(["deu_Latn", "eng_Latn", "fra_Latn"])
    ids = {name: rust.token_to_id(name) for name in ("deu_Latn", "eng_Latn", "fra_Latn", "<|im_end|>")}
    rust.post_processor = TemplateProcessing(single="eng_Latn $A <|im_end|>", special_tokens=list(ids.items()))
    rust.save(path)
    return folder, config, ids


def test_a_translator_learns_answers_that_begin_with_their_language(
    translator: tuple[Path, ModelConfig, dict[str, int]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder, config, ids = translator
    path = write_pairs(tmp_path / "pairs.jsonl", ("the sea", "blue"), ("the sky", "grey"), ("the boats", "white"))
    of_config = replace(config, forced_bos_token_id=ids["fra_Latn"])
    chats, _ = load_pairs([path], folder, of_config, source_language="deu_Latn", target_language="fra_Latn")
    end = ids["<|im_end|>"]
    assert chats[0][0].tolist() == [
        ids["deu_Latn"], *tokenizer.encode("the sea"), end, 2, ids["fra_Latn"], *tokenizer.encode("blue"), end,
    ]  # fmt: skip
    settings = finetune_settings(folder, path, tmp_path / "run", validation_fraction=0.0)
    settings |= {"method": "sft", "max_steps": 40, "learning_rate": 1e-2, "save_every": 40}
    settings |= {"sample_prompts": ("the sea",), "sample_every": 40}
    finetune(settings | {"source_language": "deu_Latn", "target_language": "fra_Latn"})
    trained = load_checkpoint(tmp_path / "run" / "latest")
    assert trained.config == of_config  # so it answers in that language by itself
    source = [ids["deu_Latn"], *tokenizer.encode("the sea"), end]
    assert tokenizer.decode(generate(trained, source, 8)) == "blue"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"target_language is not set, and .* answers in 3 languages. Name the answers', such as deu_Latn"),
        ({"target_language": "de"}, "target_language is 'de'; near it of the model's 3: deu_Latn"),
        ({"target_language": "fra_Latn", "source_language": "de"}, "source_language is 'de'; near it of the model's"),
    ],
)
def test_a_language_that_a_translator_lacks_is_refused(
    settings: dict[str, str],
    message: str,
    translator: tuple[Path, ModelConfig, dict[str, int]],
    tmp_path: Path,
) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", ("the sea", "blue"))
    with pytest.raises(ConfigError, match=message):
        finetune(finetune_settings(translator[0], path, tmp_path / "run") | settings)


def test_a_model_without_an_encoder_takes_no_language(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "ckpt", CONFIG)
    path = write_pairs(tmp_path / "pairs.jsonl", ("the sea", "blue"))
    with pytest.raises(ConfigError, match=r"target_language is 'fra_Latn'; .* has no encoder. Leave it out"):
        finetune(finetune_settings(folder, path, tmp_path / "run") | {"target_language": "fra_Latn"})


def test_a_pair_is_left_out_for_either_text_that_is_too_long(pair_model: Path, tmp_path: Path) -> None:
    long = "the sea " * 20
    path = write_pairs(tmp_path / "pairs.jsonl", ("a", "b"), (long, "b"), ("a", long))
    rows = rows_of(path, pair_model, length=16)
    assert (rows.left_out, rows.rows_per_epoch) == ((1, 2), 1)


def test_the_rows_fit_the_shorter_context_of_the_two_stacks(tmp_path: Path) -> None:
    config = replace(PAIR, encoder=replace(STACK, max_position_embeddings=32))
    folder = make_checkpoint(tmp_path / "ckpt", config)
    path = write_pairs(tmp_path / "pairs.jsonl", ("a", "b"))
    settings = finetune_settings(folder, path, tmp_path / "run", validation_fraction=0.0, sequence_length=33)
    with pytest.raises(ConfigError, match="sequence_length is 33, longer than the model's context of 32 tokens"):
        finetune(settings)


def test_the_first_loss_of_a_run_is_that_of_each_pair_alone(pair_model: Path, tmp_path: Path) -> None:
    """So neither padding nor the company in a batch counts."""
    path = write_pairs(tmp_path / "pairs.jsonl", ("the sea is", "blue"), ("a", "grey and white"), ("sand", "in"))
    model, rows = load_checkpoint(pair_model), rows_of(path, pair_model)
    total, count = 0.0, 0
    for row in range(3):
        batch = rows.batch(row, 1)
        with torch.no_grad():
            logits_TV = model(*batch.inputs)[0]
        total += float(functional.cross_entropy(logits_TV, batch.targets_BT[0], reduction="sum"))
        count += batch.targets_BT.shape[1]
    settings = finetune_settings(pair_model, path, tmp_path / "run", validation_fraction=0.0)
    finetune(settings | {"method": "sft", "global_batch_size": 3, "max_steps": 1})
    assert losses(tmp_path / "run")[0] == pytest.approx(total / count, rel=1e-5)


def test_a_model_learns_pairs_goes_on_after_a_stop_and_answers_as_a_package(pair_model: Path, tmp_path: Path) -> None:
    pairs = [("the sea", "blue"), ("the boats", "white"), ("the sky", "grey"), ("the wind", "sings")]
    path = write_pairs(tmp_path / "pairs.jsonl", *pairs)
    changes: dict[str, Any] = {"method": "sft", "max_steps": 40, "learning_rate": 1e-2, "validation_fraction": 0.0}
    changes |= {"save_every": 30, "sample_prompts": ("the sea",), "sample_every": 40}
    finetune(finetune_settings(pair_model, path, tmp_path / "run") | changes)
    assert losses(tmp_path / "run")[-1] < 0.05  # from 6.2; seen: 0.019
    finetune_again = finetune_settings(pair_model, path, tmp_path / "stopped") | changes
    stop_at(20, lambda reporter: finetune(finetune_again, reporter=reporter))
    finetune({"output": str(tmp_path / "stopped")}, resume=True)
    assert_same_run_but_for_extra_saves(tmp_path / "run", tmp_path / "stopped", 20)

    with open_checkpoint(tmp_path / "run/latest") as checkpoint:
        export_unchecked(checkpoint, tmp_path / "package", "int8")
    model = edgelm.load(tmp_path / "package")
    assert [one.text for one in model.generate_batch([source for source, _ in pairs])] == [
        answer for _, answer in pairs
    ]


def test_an_adapter_on_both_stacks_learns_too_and_is_merged(pair_model: Path, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", ("the sea", "blue"), ("the boats", "white"), ("the sky", "grey"))
    settings = finetune_settings(pair_model, path, tmp_path / "run", validation_fraction=0.0, max_steps=12)
    finetune(settings)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    merge_adapter(tmp_path / "run/latest", tmp_path / "merged")
    merged, base = load_checkpoint(tmp_path / "merged"), load_checkpoint(pair_model)
    for module in ("encoder.layers.0.self_attn.q_proj", "decoder.layers.1.encoder_attn.v_proj"):
        before, after = (model.model.get_submodule(module).weight for model in (base, merged))
        assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("lines", "changes", "error", "message"),
    [
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2}],
            {},
            DataError,
            r"pairs.jsonl:1: a model with an encoder learns from one text and its answer.*user, assistant, user, ass",
        ),
        ([{"prompt": "a", "completion": "\ud800"}], {}, DataError, "pairs.jsonl:1: .*half of a surrogate pair"),
        ([], {}, DataError, "There is no pair of source and answer in"),
        (
            [{"prompt": "a " * 70, "completion": "b"}],
            {"sequence_length": 8},
            DataError,
            "No pair of source and answer fits into sequence_length 8; the shortest needs",
        ),
        ([{"prompt": "a", "completion": "b"}], {"sequence_length": 65}, ConfigError, "longer than the model's context"),
        ([{"prompt": "a", "completion": "b"}], {"method": "dpo"}, ConfigError, "method is 'dpo', and .* has an encode"),
    ],
)
def test_what_teaches_no_encoder_is_refused(
    lines: list[dict[str, Any]],
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    pair_model: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(error, match=message):
        finetune(finetune_settings(pair_model, path, tmp_path / "run", validation_fraction=0.0) | changes)


def test_a_model_with_an_encoder_is_not_looked_into(pair_model: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="The model has an encoder; models of one stack alone can be looked into"):
        inspect_text(load_checkpoint(pair_model), tokenizer, [5])
