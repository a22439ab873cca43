"""Fine-tuning: each method against PEFT or a plain loop, against itself interrupted, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from make_tiny_model import CONFIG, make_checkpoint
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_training_runs import (
    assert_same_run_but_for_extra_saves,
    finetune_settings,
    loss_log,
    losses,
    put_adapter_on,
    stop_at,
)
from torch.nn import functional
from transformers import AutoModelForCausalLM

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig
from edgelm.errors import ChatTemplateError, CheckpointError, DataError, EdgeLMError, TrainingError
from edgelm_training.adaptation.lora import LoraConfig as LoraShape
from edgelm_training.adaptation.lora import add_adapters, linear_names
from edgelm_training.checkpoints.adapter import read_adapter
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.conversations.chats import load_chats
from edgelm_training.conversations.preferences import load_preferences
from edgelm_training.finetune import build_recipe, finetune
from edgelm_training.rows.batches import NO_TARGET
from edgelm_training.rows.chat_rows import ChatRows
from edgelm_training.rows.preference_rows import PreferenceRows
from edgelm_training.runs.loss import count_targets, next_token_loss
from edgelm_training.runs.throughput import flops_per_token
from edgelm_training.runs.train_log import SilentReporter
from edgelm_training.settings.finetune_config import FinetuneConfig
from edgelm_training.settings.settings import SettingError

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "lora": {"method": "lora", "dropout": 0.1},
    "qlora": {"method": "qlora"},
    "dpo": {"method": "dpo"},
    "dpo of the whole model": {"method": "dpo", "rank": 0},
}


@pytest.fixture
def settings(tiny_chat_model: Path, tiny_chats: Path, tiny_preferences: Path, tmp_path: Path) -> Any:
    """Return the settings of a method's run: settings(name of METHODS, folder's name, **changes)."""

    def make(name: str, folder: str = "run", **changes: Any) -> dict[str, Any]:
        data = tiny_preferences if name.startswith("dpo") else tiny_chats
        return finetune_settings(tiny_chat_model, data, tmp_path / folder) | METHODS[name] | changes

    return make


class Notes(SilentReporter):
    """Keep what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(name: str, settings: Any, tmp_path: Path) -> None:
    finetune(settings(name, "whole", save_every=4))
    stop_at(3, lambda reporter: finetune(settings(name, "resumed", save_every=4), reporter=reporter))

    assert finetune({"output": str(tmp_path / "resumed")}, resume=True).step == 8

    assert_same_run_but_for_extra_saves(tmp_path / "resumed", tmp_path / "whole", stopped_at=3)
    measured = [entry["validation_loss"] for entry in loss_log(tmp_path / "whole") if "validation_loss" in entry]
    assert measured[-1] < measured[0]


def test_whole_models_are_checkpoints_and_adapters_stand_beside_their_base(settings: Any, tmp_path: Path) -> None:
    finetune(settings("sft", "sft", max_steps=1))
    finetune(settings("lora", "lora", max_steps=1, alpha=6.5, target_modules=("q_proj",)))
    names = {name: {path.name for path in (tmp_path / name / "latest").iterdir()} for name in ("sft", "lora")}
    texts = {"tokenizer.json", "chat_template.jinja", "generation_config.json"}
    assert names["sft"] == {"config.json", "model.safetensors", "trainer"} | texts
    assert names["lora"] == {"adapter_config.json", "adapter_model.safetensors", "trainer"}
    assert load_checkpoint(tmp_path / "sft/latest").config == ModelConfig.load(tmp_path / "sft/latest")
    adapter = tmp_path / "lora/latest"
    written = json.loads((adapter / "adapter_config.json").read_text())
    shape = {"r": 4, "lora_alpha": 6.5, "lora_dropout": 0.1, "target_modules": ["q_proj"]}
    assert {name: written[name] for name in shape} == shape
    modes = {(adapter / name).stat().st_mode for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert len(modes) == 1
    kept = [name for path in (adapter / "trainer").glob("*.safetensors") for name in load_file(path)]
    assert kept
    assert all(".lora_" in name for name in kept)  # the base is where it was


def test_lora_learns_as_peft_does(settings: Any, tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path) -> None:
    """transformers' model in PEFT's adapters, in a textbook's loop, from the same first matrices."""
    same = {"sequence_length": 64, "validation_fraction": 0.0, "warmup_steps": 0, "min_learning_rate_ratio": 1.0}
    finetune(settings("lora", dropout=0.0, save_every=8, **same))
    training, _ = load_chats([tiny_chats], tiny_chat_model)
    rows = ChatRows(training, sequence_length=64, seed=0)
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_chat_model),
        LoraConfig(r=4, lora_alpha=8, target_modules=kinds, task_type="CAUSAL_LM"),
    )
    # The first matrices are those that a run of one step with no learning rate to speak of has saved.
    finetune(settings("lora", "first", dropout=0.0, max_steps=1, learning_rate=1e-12, **same))
    first = load_file(tmp_path / "first/latest/adapter_model.safetensors")
    theirs.load_state_dict({name.replace(".weight", ".default.weight"): t for name, t in first.items()}, strict=False)
    adamw = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    expected = []
    for step in range(8):
        batch = rows.batch(4 * step, 4)
        assert all(len(set(row)) <= 2 for row in batch.documents_BT.tolist())  # transformers knows no packing
        logits_BTV = theirs(batch.ids_BT).logits
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=NO_TARGET)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        expected.append(loss.item())

    # float32 in another order of sums. Measured: 7.9e-6 on losses of 6.9.
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0] - 0.1


def test_a_token_counts_alike_in_whatever_piece_it_is(settings: Any, tmp_path: Path) -> None:
    """Rows with few words of the assistant beside rows with many: a mean of the pieces' means would be another one."""
    data = tmp_path / "uneven.jsonl"
    pairs = [{"prompt": "The sea. " * (9 - i % 9), "completion": "It is blue. " * (1 + i % 9)} for i in range(16)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    uneven = {"data": (str(data),), "validation_fraction": 0.25}
    for folder, pieces in (("whole", 1), ("pieces", 4)):
        finetune(settings("sft", folder, grad_accum_steps=pieces, **uneven))

    # float32 in another order of sums. Measured: 4.7e-7.
    assert losses(tmp_path / "pieces") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    measured = [[entry.get("validation_loss") for entry in loss_log(tmp_path / name)] for name in ("pieces", "whole")]
    assert measured[0] == pytest.approx(measured[1], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "lengths", "changes"),
    [
        ("sft", [(1, 1)], ({"sequence_length": 64}, {"sequence_length": 128})),
        ("dpo of the whole model", [(1, 1), (1, 9)], ({"grad_accum_steps": 2}, {"grad_accum_steps": 1})),
    ],
)
def test_padding_makes_no_text_a_long_one(
    name: str, lengths: list[tuple[int, int]], changes: tuple[Any, Any], settings: Any, tmp_path: Path
) -> None:
    """LongRoPE turns a text by its length, alone in its row or with padding up to a longer one."""
    rope = RopeScaling(
        rope_type="longrope", original_max_position_embeddings=64, short_factor=(1.0,) * 8, long_factor=(4.0,) * 8
    )
    base = make_checkpoint(tmp_path / "base", replace(CONFIG, max_position_embeddings=128, rope_scaling=rope))
    data = tmp_path / "data.jsonl"
    answer = "completion" if name == "sft" else "chosen"
    pairs = [{"prompt": "Sea?", answer: "Blue. " * a, "rejected": "Grey. " * b} for a, b in lengths]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run = {"model": str(base), "data": (str(data),), "validation_fraction": 0.0, "max_steps": 3}
    for folder, change in zip("ab", changes, strict=True):
        finetune(settings(name, folder, global_batch_size=len(pairs), **run, **change))

    # float32 in another order of sums. Measured: 5e-8; by the wrong factors 0.015 and more.
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-5)


def test_the_log_has_the_tokens_that_were_read_since_the_run_began(
    settings: Any, tiny_chat_model: Path, tmp_path: Path
) -> None:
    """Of rows that are as long as the longest of their batch, no two steps need have as many."""
    data = tmp_path / "uneven.jsonl"
    pairs = [{"prompt": "What? " * (1 + i % 5), "chosen": "Blue.", "rejected": "Grey. " * (i % 7)} for i in range(16)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    finetune(settings("dpo", data=(str(data),), validation_fraction=0.0, global_batch_size=2, max_steps=3))
    finetune({"output": str(tmp_path / "run"), "max_steps": 6}, resume=True)

    rows = PreferenceRows(load_preferences([data], tiny_chat_model)[0], sequence_length=128, seed=0)
    sizes = [rows.batch(2 * step, 2).ids_BT.numel() for step in range(6)]
    assert len(set(sizes)) > 3
    assert losses(tmp_path / "run")[0] == pytest.approx(math.log(2))  # a mean of pairs: a fresh adapter prefers neither
    assert [entry["tokens"] for entry in loss_log(tmp_path / "run") if "loss" in entry] == [*accumulate(sizes)]


def test_epochs_are_steps_of_the_data(settings: Any) -> None:
    values = {key: value for key, value in settings("dpo", epochs=2, save_every=100).items() if key != "max_steps"}
    notes = Notes()

    outcome = finetune(values, reporter=notes)

    pairs = int(notes.texts[0].split()[0])
    assert outcome.step == -(-2 * pairs // 4)
    assert finetune({"output": values["output"], "max_steps": outcome.step + 1}, resume=True).step == outcome.step + 1
    assert notes.texts[0].startswith(f"{pairs} pairs to train on, {40 - pairs} to validate; rows of ")
    assert notes.texts[1].endswith(" parameters learn beside 28,832 frozen ones.")
    with pytest.raises(SettingError, match="epochs and max_steps both say how long to train"):
        finetune(settings("lora", epochs=2))


# Passes of a token, of which a step of a whole model has three: forward, and backward to activations and weights.
PASSES = {"sft": 3, "lora": 2, "qlora": 2, "dpo": 3, "dpo of the whole model": 4}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_set_is_what_the_method_usually_has(name: str, settings: Any) -> None:
    unset = dict.fromkeys(("max_steps", "global_batch_size", "learning_rate", "warmup_steps", "sequence_length"))
    config, recipe = build_recipe(FinetuneConfig(**settings(name, **unset)), SilentReporter())

    rows, epochs = recipe.training_rows.rows_per_epoch, 1 if name.startswith("dpo") else 3
    assert (config.global_batch_size, config.max_steps) == (8, -(-epochs * rows // 8))
    by_pieces = FinetuneConfig(**settings(name, **unset, micro_batch_size=1, grad_accum_steps=3))
    assert build_recipe(by_pieces, SilentReporter())[0].global_batch_size == 3
    assert config.learning_rate == {"sft": 2e-5, "lora": 2e-4, "qlora": 2e-4}.get(name, 1e-5)
    assert (config.warmup_steps, config.sequence_length) == (1, 64)
    assert config.alpha == (8.0 if config.rank else None)
    per_pass = flops_per_token(recipe.model.config, 64) / 3
    assert recipe.flops_per_token == pytest.approx(PASSES[name] * per_pass)


def test_another_seed_begins_with_another_adapter_and_other_rows(
    settings: Any, tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    finetune(settings("lora", seed=7, max_steps=1, dropout=0.0, learning_rate=1e-12, validation_fraction=0.0))

    rows = ChatRows(load_chats([tiny_chats], tiny_chat_model)[0], sequence_length=64, seed=7)
    batch, model = rows.batch(0, 4), load_checkpoint(tiny_chat_model)
    loss = float(next_token_loss(model, batch).objective.detach()) / count_targets(batch)
    assert losses(tmp_path / "run") == pytest.approx([loss], abs=1e-6)
    torch.manual_seed(7)
    add_adapters(model, linear_names(model), LoraShape(rank=4, alpha=8.0, dropout=0.0, target_modules=()))
    ours = read_adapter(tmp_path / "run/latest").matrices
    for layer, (a, _) in ours.items():
        torch.testing.assert_close(a, model.get_submodule(layer).lora_A.weight, rtol=0, atol=1e-9)


def test_activations_are_computed_again_where_that_is_asked_for(settings: Any) -> None:
    for asked in (True, False):
        _, recipe = build_recipe(FinetuneConfig(**settings("sft", activation_checkpointing=asked)), SilentReporter())
        assert recipe.model.activation_checkpointing is asked


def test_nothing_is_dropped_where_the_model_is_measured_or_writes(
    settings: Any, tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    monkeypatch.setattr("edgelm_training.finetune.write_samples", lambda model, *_: modes.append(model.training) or [])
    dropped = {"dropout": 0.5, "learning_rate": 0.05, "max_steps": 2, "sequence_length": 64}
    finetune(settings("lora", sample_prompts=("Hi",), sample_every=1, eval_every=0, **dropped))
    finetune(settings("lora", "measured", **dropped))

    assert modes == [False, False]
    model = load_checkpoint(tiny_chat_model)
    put_adapter_on(model, tmp_path / "measured/latest")
    held_out = ChatRows(
        load_chats([tiny_chats], tiny_chat_model, validation_fraction=0.05)[1], sequence_length=64, seed=0
    )
    batch = held_out.batch(0, held_out.rows_per_epoch)
    expected = float(next_token_loss(model.eval(), batch).objective.detach()) / count_targets(batch)
    measured = [entry["validation_loss"] for entry in loss_log(tmp_path / "measured") if "validation_loss" in entry]
    assert measured[-1] == pytest.approx(expected, abs=1e-5)


def test_rows_are_no_longer_than_2048_tokens_where_nobody_asks_for_more(
    settings: Any, tiny_chats: Path, tmp_path: Path
) -> None:
    model = make_checkpoint(tmp_path / "wide", replace(CONFIG, max_position_embeddings=4096))
    data = tmp_path / "some.jsonl"
    long = {"prompt": "What?", "completion": "The sea is blue. " * 600}
    data.write_text(tiny_chats.read_text() + json.dumps(long) + "\n")

    config, recipe = build_recipe(
        FinetuneConfig(**settings("lora", model=str(model), data=(str(data),), validation_fraction=0.0)),
        SilentReporter(),
    )

    assert config.sequence_length == 2048
    assert recipe.training_rows.left_out == (len(recipe.training_rows.chats) - 1,)


def test_long_conversations_are_left_out_and_said(settings: Any, tiny_chats: Path, tmp_path: Path) -> None:
    data = tmp_path / "some.jsonl"
    long = {"prompt": "What?", "completion": "The sea is blue. " * 60}
    data.write_text(tiny_chats.read_text() + json.dumps(long) + "\n")
    notes = Notes()
    finetune(settings("lora", data=(str(data),), max_steps=1, validation_fraction=0.0), reporter=notes)
    assert notes.texts[0] == "40 conversations to train on, 0 to validate; rows of 128 tokens."
    assert notes.texts[1] == (f"Too long and left out: 1 conversation: {data}:41. The model's context holds no more.")
    data.write_text(json.dumps(long) + "\n")
    for length, words in ((None, "128; .* The model's context holds no more"), (64, "64; .* --sequence-length")):
        with pytest.raises(DataError, match=rf"^No conversation fits into sequence_length {words}\.$"):
            finetune(settings("lora", "none", data=(str(data),), sequence_length=length))


def test_that_nothing_is_left_to_validate_on_is_said(settings: Any, tmp_path: Path) -> None:
    data = tmp_path / "same.jsonl"
    data.write_text((json.dumps({"prompt": "Hi", "completion": "Hello!"}) + "\n") * 3)
    told = []
    for fraction in (0.05, 0.0):
        notes = Notes()
        build_recipe(FinetuneConfig(**settings("lora", data=(str(data),), validation_fraction=fraction)), notes)
        told.append([note for note in notes.texts if "none is left to validate on: the run has no validation" in note])
    assert list(map(len, told)) == [1, 0]  # 0: as it was asked for


@pytest.mark.parametrize(
    ("end", "is_said"),
    [
        ("<|im_end|>{% endgeneration %}", False),
        ("<|im_end|>\n{% endgeneration %}", False),  # as SmolLM3's
        ("{% endgeneration %}<|im_end|>", True),
        ("</s>{% endgeneration %}", True),
    ],
)
def test_that_no_answer_teaches_the_model_to_stop_is_said(
    end: str, is_said: bool, settings: Any, tiny_chat_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_chat_model, tmp_path / "model")
    asked = "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% else %}"
    answered = f"{{% generation %}}{{{{ m['content'] }}}}{end}{{% endif %}}{{% endfor %}}"
    (model / "chat_template.jinja").write_text(asked + answered)
    notes = Notes()
    build_recipe(FinetuneConfig(**settings("lora", model=str(model))), notes)
    assert any("it does not learn to stop" in note for note in notes.texts) == is_said


def test_what_is_validated_on_fits_the_rows_or_is_said_to_be_left_out(
    settings: Any, tiny_chats: Path, tmp_path: Path
) -> None:
    longer = tmp_path / "longer.jsonl"
    answers = ("The sea is blue.", "The sea is blue. " * 5)
    longer.write_text("".join(json.dumps({"prompt": "What?", "completion": answer}) + "\n" for answer in answers))
    notes = Notes()
    own = {"validation_data": (str(longer),), "max_steps": 1}

    finetune(settings("lora", "grown", sequence_length=None, **own), reporter=notes)
    finetune(settings("lora", "given", sequence_length=64, **own), reporter=notes)

    counted = [text for text in notes.texts if "to validate" in text]
    assert counted == [
        f"40 conversations to train on, {count} to validate; rows of {length} tokens."
        for count, length in ((2, 128), (1, 64))
    ]
    left_out = f"Too long and left out: 1 conversation: {longer}:2. To take them in: --sequence-length."
    assert [text for text in notes.texts if "left out" in text] == [left_out]
    longer.write_text(longer.read_text().splitlines()[1])
    with pytest.raises(DataError, match=r"Of what is kept to validate on: No conversation .*--validation-data"):
        finetune(settings("lora", "none", sequence_length=64, **own))


def test_another_file_can_be_validated_on(settings: Any, tiny_chats: Path) -> None:
    notes = Notes()
    finetune(settings("lora", validation_data=(str(tiny_chats),), max_steps=1), reporter=notes)
    assert notes.texts[0].startswith("40 conversations to train on, 40 to validate;")
    assert notes.texts[1].startswith(
        "40 of the conversations to validate on are trained on too: neither the validation"
    )


def test_the_model_answers_while_it_learns(settings: Any, tmp_path: Path) -> None:
    finetune(settings("lora", sample_prompts=("What is 3?",), sample_every=4, sample_tokens=3))
    samples = [entry for entry in loss_log(tmp_path / "run") if "sample" in entry]
    assert [(entry["step"], entry["prompt"]) for entry in samples] == [(4, "What is 3?"), (8, "What is 3?")]


WRONG: dict[str, tuple[dict[str, Any], type[EdgeLMError], str]] = {
    "no model": ({"model": None}, SettingError, "model is not set: name the checkpoint folder to fine-tune"),
    "no data": ({"data": ()}, SettingError, r"data is not set: name a file of conversations \(--data\)"),
    "no checkpoint": (
        {"model": "tiny.gguf"},
        CheckpointError,
        r"tiny\.gguf is no checkpoint folder.*edgelm import tiny",
    ),
    "no such method": ({"method": "ppo"}, SettingError, "method is 'ppo'; it must be one of sft, lora, qlora, dpo"),
    "epochs without an end": ({"epochs": math.inf, "max_steps": None}, SettingError, "epochs is inf; it must be"),
    "no epochs": ({"epochs": 0.0, "max_steps": None}, SettingError, r"epochs is 0\.0; it must be more than 0"),
    "less than nothing held out": (
        {"validation_fraction": -0.1},
        SettingError,
        r"validation_fraction is -0\.1; it must",
    ),
    "less than nothing dropped": ({"dropout": -0.1}, SettingError, r"dropout is -0\.1; it must be from 0 to below 1"),
    "a rank below none": ({"method": "dpo", "rank": -1}, SettingError, "rank is -1; it must be"),
    "all held out": ({"validation_fraction": 1.0}, SettingError, r"validation_fraction is 1\.0; it must be from 0"),
    "nothing left": ({"validation_fraction": 0.9999}, DataError, "All conversations .40. went to the validation split"),
    "a rank beyond all": ({"rank": 10**400}, SettingError, "rank is 1000+; it must be at most 2147483647"),
    "a useless rank": (
        {"rank": 5_000_000, "target_modules": ("q_proj", "down_proj")},
        SettingError,
        r"rank is 5000000; .* than 32, which model\.layers\.0\.self_attn\.q_proj has with its 32 x 32 weights\. Use 32",
    ),
    "no rank": ({"rank": 0}, SettingError, "rank is 0; it must be 1 or more. The whole model learns with --method sft"),
    "no alpha": ({"alpha": 0.0}, SettingError, r"alpha is 0\.0; it must be more than 0"),
    "an alpha beyond float32": ({"alpha": 1e300}, SettingError, r"alpha is 1e\+300; .* a number that float32 holds"),
    "all dropped": ({"dropout": 1.0}, SettingError, r"dropout is 1\.0; it must be from 0 to below 1"),
    "no beta": ({"dpo_beta": 0.0}, SettingError, r"dpo_beta is 0\.0; it must be more than 0"),
    "an endless beta": ({"dpo_beta": math.inf}, SettingError, "dpo_beta is inf; .* a number that float32 holds"),
    "no such layer": ({"target_modules": ("c_attn",)}, SettingError, "target_modules has 'c_attn'"),
    "rows too long": ({"sequence_length": 129}, SettingError, "sequence_length is 129, longer than .* context of 128"),
    "rows too short": ({"sequence_length": 4}, DataError, "sequence_length 4"),
    "a prompt too long": ({"sample_prompts": ("What? " * 99,)}, SettingError, "context of 128 has no room for more"),
    "no such file": ({"data": ("nowhere.jsonl",)}, DataError, r"nowhere\.jsonl"),
    "a precision, before the data is read": (
        {"method": "sft", "qat": "int5", "data": ("nowhere.jsonl",)},
        SettingError,
        "qat is 'int5'; it must be one of int8",
    ),
    "a teacher, before the data is read": (
        {"method": "sft", "teacher": "taecher", "data": ("nowhere.jsonl",)},
        CheckpointError,
        "taecher is no checkpoint folder",
    ),
    "preferences for chats": ({"method": "dpo"}, DataError, r"chats\.jsonl:1: this is no preference"),
    "another model": (
        {"base_sha256": "0" * 64, "validation_fraction": 0.5},
        TrainingError,
        r"are not those of the run: .* base_sha256 is 0000",
    ),
    "shards of a base in 4 bits": (
        {"method": "qlora", "parallel": "fsdp"},
        SettingError,
        "parallel is 'fsdp', which cannot shard a base in 4 bits. Use 'ddp', or --method lora",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_learned_is_refused_and_leaves_nothing(name: str, settings: Any, tmp_path: Path) -> None:
    changes, error, message = WRONG[name]
    values = {key: value for key, value in settings("lora", **changes).items() if value is not None}
    with pytest.raises(error, match=message):
        finetune(values)
    assert not (tmp_path / "run").exists()


def test_that_a_run_begins_where_one_was_to_go_on_is_said(tmp_path: Path) -> None:
    notes = Notes()
    with pytest.raises(SettingError, match="model is not set"):
        finetune({"output": str(tmp_path / "rnu")}, resume=True, reporter=notes)
    assert notes.texts == [f"There is no run in {tmp_path / 'rnu'} to go on with: one begins."]


def test_a_broken_line_is_named(settings: Any, tiny_chats: Path, tmp_path: Path) -> None:
    data = tmp_path / "broken.jsonl"
    data.write_text(tiny_chats.read_text() + '{"prompt": "Hi", "completion": \n')
    with pytest.raises(DataError, match=r"broken\.jsonl:41: broken JSON"):
        finetune(settings("lora", data=(str(data),)))


def test_a_model_without_a_template_or_of_another_tokenizer_is_refused(settings: Any, tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", replace(CONFIG, max_position_embeddings=128))
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ChatTemplateError, match=r"has no chat_template\.jinja, so nothing says how .* Put one there"):
        finetune(settings("lora", model=str(plain)))
    small = make_checkpoint(tmp_path / "small", replace(CONFIG, vocab_size=319))
    with pytest.raises(DataError, match="has 320 tokens, the model 319: they do not belong together"):
        finetune(settings("lora", model=str(small)))


def test_a_run_goes_on_with_its_own_model_data_and_shape_alone(
    settings: Any, tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    finetune(settings("lora", max_steps=2))
    run = {"output": str(tmp_path / "run"), "max_steps": 3}
    changes = {"method": "qlora", "rank": 8, "alpha": 4.0, "dropout": 0.5, "target_modules": ("q_proj",)}
    changes |= {"dpo_beta": 0.5, "base_sha256": "0" * 64, "validation_fraction": 0.5}
    for name, value in changes.items():
        with pytest.raises(TrainingError, match=rf"{name} is .*; the run in .* began with .*, and cannot change it"):
            finetune(run | {name: value}, resume=True)
    other = make_checkpoint(tmp_path / "other", replace(CONFIG, max_position_embeddings=128), seed=1)
    with pytest.raises(TrainingError, match=r"The weights in .*other are not those of the run"):
        finetune(run | {"model": str(other)}, resume=True)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(tiny_chats.read_text().splitlines(keepends=True)[:30]))
    with pytest.raises(TrainingError, match="The data changed since"):
        finetune(run | {"data": (str(fewer),)}, resume=True)
    # The same model in another place is the same model.
    shutil.copytree(tiny_chat_model, tmp_path / "moved")
    assert finetune(run | {"model": str(tmp_path / "moved")}, resume=True).step == 3
