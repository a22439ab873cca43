"""The training loop: against a plain loop, against itself in other pieces, and against itself interrupted."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from forked_processes import exit_status, fork
from tiny_training_runs import (
    MODEL,
    assert_same_run,
    assert_same_run_but_for_extra_saves,
    loss_log,
    losses,
    settings,
    stop_at,
)
from tokenizers.processors import TemplateProcessing
from torch.nn import functional

from edgelm.errors import CheckpointError, ConfigError, DataError, TrainingError
from edgelm.testing import tiny_model_path
from edgelm_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from edgelm_training.model import Transformer
from edgelm_training.pretrain import build_recipe, pretrain
from edgelm_training.rows.batches import NO_TARGET, Batches
from edgelm_training.runs.device import Device
from edgelm_training.runs.loss import count_targets, next_token_loss
from edgelm_training.runs.train_log import SilentReporter
from edgelm_training.settings import train_config
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import SettingError
from edgelm_training.texts.shard_writer import PrepareConfig, prepare_shards
from edgelm_training.texts.shards import Shards


@pytest.fixture(scope="module")
def whole_run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    pretrain(settings(tiny_shards, run))
    return run


def test_the_losses_are_those_of_a_plain_loop(whole_run: Path, tiny_shards: Path) -> None:
    """As a textbook has it: one batch, mean cross-entropy, clip, AdamW in a loop over tensors."""
    config = load_checkpoint(whole_run / "latest").config
    torch.manual_seed(0)
    model = Transformer(config)
    rows = Batches(Shards.open(tiny_shards), sequence_length=32, seed=0)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    expected = []
    for step in range(1, 9):
        rate = 3e-3 * step / 2 if step <= 2 else 3e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - 2) / 6)) / 2)
        for group in adamw.param_groups:
            group["lr"] = rate
        batch = rows.batch((step - 1) * 4, 4)
        loss = functional.cross_entropy(
            model(batch.ids_BT, batch.documents_BT).flatten(0, 1), batch.targets_BT.flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        expected.append(loss.item())

    # float32 in another order of sums, and the fused update's last bit. Measured: 5e-7 after 8 steps.
    assert losses(whole_run) == pytest.approx(expected, abs=1e-5)
    assert losses(whole_run)[-1] < losses(whole_run)[0] - 0.3


@pytest.mark.parametrize("how", [{"micro_batch_size": 1}, {"grad_accum_steps": 2}, {"activation_checkpointing": True}])
def test_pieces_and_recomputed_activations_give_the_same_losses(
    how: dict[str, int], whole_run: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", save_every=8, sample_every=0, **how))

    # The gradients are summed in another order. Measured: 1.1e-6.
    assert losses(tmp_path / "run") == pytest.approx(losses(whole_run), abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "fp16"}, {"optimizer": "muon", "schedule": "wsd", "z_loss": 1e-4, "precision": "bf16"}],
)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    changes: dict[str, object], tiny_shards: Path, tmp_path: Path
) -> None:
    changes = {"save_every": 4} | changes
    pretrain(settings(tiny_shards, tmp_path / "whole", **changes))
    # The schedule is that of the whole run, which a signal stops after three of its eight steps.
    stop_at(3, lambda reporter: pretrain(settings(tiny_shards, tmp_path / "resumed", **changes), reporter=reporter))

    outcome = pretrain({"output": str(tmp_path / "resumed")}, resume=True)

    assert outcome.step == 8
    assert_same_run_but_for_extra_saves(tmp_path / "resumed", tmp_path / "whole", stopped_at=3)


def test_another_seed_begins_with_other_weights_and_other_rows(tiny_shards: Path, tmp_path: Path) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", seed=7, max_steps=1, warmup_steps=1))

    config = load_checkpoint(tmp_path / "run/latest").config
    torch.manual_seed(7)
    model = Transformer(config)
    batch = Batches(Shards.open(tiny_shards), sequence_length=32, seed=7).batch(0, 4)
    expected = float(next_token_loss(model, batch).objective.detach()) / count_targets(batch)
    assert losses(tmp_path / "run") == pytest.approx([expected], abs=1e-6)  # of other rows or weights: 4e-3 and more


def test_a_limit_of_zero_clips_no_gradient(whole_run: Path, tiny_shards: Path, tmp_path: Path) -> None:
    short = {"max_steps": 8, "save_every": 8, "eval_every": 0, "sample_every": 0}
    for name, limit in (("none", 0), ("high", 1e9)):
        pretrain(settings(tiny_shards, tmp_path / name, grad_clip=float(limit), **short))

    assert losses(tmp_path / "none") == losses(tmp_path / "high") != losses(whole_run)


def test_activations_are_computed_again_where_that_is_asked_for(tiny_shards: Path, tmp_path: Path) -> None:
    for asked in (True, False):
        config = PretrainConfig(**settings(tiny_shards, tmp_path / "run", activation_checkpointing=asked))
        _, recipe = build_recipe(config, SilentReporter())
        assert recipe.model.activation_checkpointing is asked


def test_a_run_in_fp16_is_that_in_fp32_but_for_its_rounding(whole_run: Path, tiny_shards: Path, tmp_path: Path) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", precision="fp16", eval_every=0, sample_every=0))

    # Products of 11 bits. Measured: 2.4e-5, and 2.4e-4 of the norms.
    assert losses(whole_run) != losses(tmp_path / "run") == pytest.approx(losses(whole_run), abs=3e-4)
    norms = [
        [entry["grad_norm"] for entry in loss_log(run) if "loss" in entry] for run in (tmp_path / "run", whole_run)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=2e-3)


def test_a_step_beyond_fp16_is_left_out_and_the_next_one_scaled_by_less(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=2.0**26))
    run = tmp_path / "run"

    outcome = pretrain(settings(tiny_shards, run, precision="fp16", eval_every=0, sample_every=0))

    norms = [entry["grad_norm"] for entry in loss_log(run) if "loss" in entry]
    left_out = [norm for norm in norms if norm is None]
    assert 0 < len(left_out) < len(norms) == 8
    assert "Infinity" not in (run / "log.jsonl").read_text()  # which is no JSON
    assert outcome.checkpoint.state["scaler"]["scale"] == 2.0 ** (26 - len(left_out))


def test_a_step_that_is_left_out_changes_no_weight_of_any_optimizer(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedding's gradient is beyond float16 then, which AdamW has, and none of those that Muon has.
    monkeypatch.setattr(Device, "scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=2.0**20))
    short = {"max_steps": 1, "warmup_steps": 0, "eval_every": 0, "sample_every": 0, "grad_clip": 0.0}
    pretrain(settings(tiny_shards, tmp_path / "run", precision="fp16", optimizer="muon", **short))

    trained = load_checkpoint(tmp_path / "run/latest")
    torch.manual_seed(0)
    begun = Transformer(trained.config).state_dict()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in trained.state_dict().items())


def test_a_run_goes_on_in_another_precision(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run", symlinks=True)
    run = {"output": str(tmp_path / "run")}

    assert pretrain(run | {"max_steps": 9, "precision": "fp16"}, resume=True).step == 9  # nothing says its scale yet
    assert pretrain(run | {"max_steps": 10, "precision": "fp32"}, resume=True).step == 10


def test_a_run_goes_on_for_longer(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run", symlinks=True)

    outcome = pretrain({"output": str(tmp_path / "run"), "max_steps": 10}, resume=True)

    assert outcome.step == 10
    assert len(losses(tmp_path / "run")) == 10
    assert outcome.checkpoint.state["next_row"] == 40


def test_a_finished_run_has_nothing_left_to_do(whole_run: Path) -> None:
    before = (whole_run / "log.jsonl").read_bytes()

    outcome = pretrain({"output": str(whole_run)}, resume=True)

    assert (outcome.step, outcome.loss) == (8, None)
    assert (whole_run / "log.jsonl").read_bytes() == before


def test_a_run_that_was_killed_behind_its_last_save_has_its_links_set_when_it_goes_on(
    whole_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run", symlinks=True))
    links = {name: (run / name).readlink() for name in ("latest", "best")}
    (run / "best").unlink()
    (run / "latest").unlink()
    (run / "latest").symlink_to("checkpoints/step-00000004")

    pretrain({"output": str(run)}, resume=True)

    assert {name: (run / name).readlink() for name in links} == links


def test_a_run_with_nothing_left_to_do_keeps_its_settings(whole_run: Path) -> None:
    before = (whole_run / "config.toml").read_bytes()

    pretrain({"output": str(whole_run), "max_steps": 4, "z_loss": 0.5}, resume=True)

    assert (whole_run / "config.toml").read_bytes() == before


def test_a_checkpoint_is_a_folder_to_load_and_export(whole_run: Path, tiny_shards: Path) -> None:
    from edgelm_export.sources.sources import open_checkpoint

    model = load_checkpoint(whole_run / "latest")
    assert (model.config.vocab_size, model.config.eos_token_ids) == (320, (0, 2))
    with open_checkpoint(whole_run / "best") as checkpoint:
        assert checkpoint.config == model.config
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (whole_run / "latest" / name).read_bytes() == (tiny_shards / name).read_bytes()


def test_the_validation_loss_is_the_mean_over_the_held_out_tokens(whole_run: Path, tiny_shards: Path) -> None:
    model = load_checkpoint(whole_run / "latest")
    rows = Batches(Shards.open(tiny_shards, "validation"), sequence_length=32, seed=0)
    batch = rows.batch(0, 2)
    with torch.no_grad():
        logits = model(batch.ids_BT, batch.documents_BT)
    expected = functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten()).item()

    measured = {entry["step"]: entry["validation_loss"] for entry in loss_log(whole_run) if "validation_loss" in entry}

    assert list(measured) == [0, 2, 4, 6, 8]
    assert measured[8] == pytest.approx(expected, abs=1e-6)  # the same sum in float32; measured: 0
    assert measured[0] == pytest.approx(math.log(320), abs=0.1)  # a fresh model knows nothing of its 320 tokens


def test_rows_that_the_held_out_data_has_not_are_not_measured_twice(tiny_shards: Path, tmp_path: Path) -> None:
    short = {"max_steps": 1, "warmup_steps": 1, "sample_every": 0}
    for name, rows in (("two", 2), ("many", 64)):
        pretrain(settings(tiny_shards, tmp_path / name, eval_rows=rows, **short))

    measured = [
        [entry["validation_loss"] for entry in loss_log(tmp_path / name) if "validation_loss" in entry]
        for name in ("two", "many")
    ]
    assert Batches(Shards.open(tiny_shards, "validation"), sequence_length=32, seed=0).rows_per_epoch == 2
    assert measured[0] == measured[1]


def test_a_run_that_was_killed_before_it_saved_begins_its_log_anew(
    whole_run: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "run"
    killed.mkdir()
    for name in ("config.toml", "log.jsonl"):
        (killed / name).write_bytes((whole_run / name).read_bytes())

    pretrain(settings(tiny_shards, killed), resume=True)

    assert_same_run(killed, whole_run)


def test_the_log_has_each_step_and_the_samples(whole_run: Path) -> None:
    log = loss_log(whole_run)
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 9))
    assert log[1].keys() == {"step", "loss", "learning_rate", "grad_norm", "tokens"}
    assert [entry["tokens"] for entry in log if "loss" in entry] == [128 * step for step in range(1, 9)]
    assert [(entry["step"], entry["prompt"]) for entry in log if "sample" in entry] == [(3, ""), (6, ""), (8, "")]


def test_training_goes_on_from_a_checkpoint(
    tiny_shards: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = shutil.copytree(whole_run / "latest", tmp_path / "ckpt")
    monkeypatch.chdir(tmp_path)
    start = settings(tiny_shards, tmp_path / "run", init="ckpt", max_steps=2, learning_rate=1e-5)
    del start["model"]

    pretrain(start)

    # The first batch again, after eight steps of training.
    assert losses(tmp_path / "run")[0] < losses(whole_run)[0] - 0.3

    # It goes on without the checkpoint that it began with, which a run may have removed that went on itself.
    shutil.rmtree(beginning)
    monkeypatch.chdir("run")
    assert pretrain({"output": ".", "init": "../ckpt", "max_steps": 3}, resume=True).step == 3


def test_the_z_loss_is_the_square_of_the_log_of_the_normalizer(tiny_shards: Path, whole_run: Path) -> None:
    model = load_checkpoint(whole_run / "latest")
    batch = Batches(Shards.open(tiny_shards), sequence_length=32, seed=0).batch(0, 2)
    batch.targets_BT[1, 5:] = NO_TARGET

    plain, penalized = next_token_loss(model, batch), next_token_loss(model, batch, z_loss=0.5)

    logits_BTV = model(batch.ids_BT, batch.documents_BT)
    log_z_R = logits_BTV.exp().sum(-1).log()[batch.targets_BT != NO_TARGET]
    # Sums of some hundred float32 numbers.
    torch.testing.assert_close(penalized.objective, plain.objective + 0.5 * log_z_R.square().sum())
    torch.testing.assert_close(penalized.reported["z_loss"], 0.5 * log_z_R.square().sum())
    assert torch.equal(penalized.reported["loss"], plain.objective)
    assert count_targets(batch) == len(log_z_R) == 32 + 5


def test_a_loss_that_is_no_number_stops_before_the_weights_suffer(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Transformer.forward
    calls = []

    def poisoned(model: Transformer, ids_BT: torch.Tensor, documents_BT: torch.Tensor | None = None) -> torch.Tensor:
        logits = forward(model, ids_BT, documents_BT)
        calls.append(model.training)
        # The second piece of step 3.
        return logits * math.nan if sum(calls) == 6 and model.training else logits

    monkeypatch.setattr(Transformer, "forward", poisoned)
    run = tmp_path / "run"

    with pytest.raises(TrainingError) as caught:
        pretrain(settings(tiny_shards, run, micro_batch_size=2))

    bad = Batches(Shards.open(tiny_shards), sequence_length=32, seed=0)
    message = str(caught.value)
    assert message.startswith("The loss is nan at step 3. The documents of the batch: ")
    assert all(bad.describe(row) in message for row in (10, 11))
    assert "story.jsonl:" in message
    assert f"The last good checkpoint: {run / 'checkpoints/step-00000002'}." in message
    assert message.endswith("and go on with --resume.")
    assert [entry["step"] for entry in loss_log(run) if "loss" in entry] == [1, 2]

    monkeypatch.undo()
    assert pretrain({"output": str(run)}, resume=True).step == 8


def test_it_says_what_is_no_number_where_the_loss_of_the_text_is_one(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(train_config._RANGES, "z_loss", (0, math.inf))  # one that is refused overflows at once
    with pytest.raises(TrainingError, match=r"^The z_loss is inf at step 1\."):
        pretrain(settings(tiny_shards, tmp_path / "run", z_loss=1e38))


def test_a_gradient_that_is_no_number_stops_too(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))

    with pytest.raises(
        TrainingError, match=r"The norm of the gradient is inf at step 1\. .*No checkpoint was saved yet"
    ) as caught:
        pretrain(settings(tiny_shards, tmp_path / "run"))

    rows = Batches(Shards.open(tiny_shards), sequence_length=32, seed=0)
    assert "; ".join(dict.fromkeys(rows.describe(row) for row in range(4))) in str(caught.value)


def test_shards_without_held_out_documents_and_with_a_beginning_of_their_own_are_trained_on(tmp_path: Path) -> None:
    rust = tokenizers.Tokenizer.from_file(str(tiny_model_path() / "tokenizer.json"))
    rust.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    (tmp_path / "tok").mkdir()
    rust.save(str(tmp_path / "tok/tokenizer.json"))
    (tmp_path / "corpus.txt").write_text("The sea is blue. " * 40)
    config = PrepareConfig(end_token="<|endoftext|>", workers=1)
    prepare_shards([tmp_path / "corpus.txt"], tmp_path / "shards", tmp_path / "tok", config)

    outcome = pretrain(settings(tmp_path / "shards", tmp_path / "run", max_steps=2, eval_every=1))

    assert (outcome.step, outcome.best) == (2, None)
    assert [entry for entry in loss_log(tmp_path / "run") if "validation_loss" in entry] == []
    trained = load_checkpoint(tmp_path / "run/latest").config
    begin, end = (rust.token_to_id(name) for name in ("<|im_start|>", "<|endoftext|>"))
    assert (trained.bos_token_id, trained.eos_token_ids) == (begin, (end,))


def test_data_that_changed_is_an_error(whole_run: Path, tiny_shards: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "other.jsonl"
    corpus.write_text('{"text": "Another text, and quite a short one."}\n' * 40)
    prepare_shards(
        [corpus], tmp_path / "shards", tiny_model_path(), PrepareConfig(end_token="<|endoftext|>", workers=1)
    )
    shutil.copytree(whole_run, tmp_path / "run", symlinks=True)

    changed = {"output": str(tmp_path / "run"), "data": str(tmp_path / "shards"), "max_steps": 10}
    before = (tmp_path / "run/config.toml").read_bytes()
    with pytest.raises(TrainingError, match=r"The data changed since .*step-00000008 was saved"):
        pretrain(changed, resume=True)
    assert (tmp_path / "run/config.toml").read_bytes() == before  # it can go on as it was

    # The same data in another place is the same data.
    shutil.copytree(tiny_shards, tmp_path / "moved")
    assert pretrain(changed | {"data": str(tmp_path / "moved")}, resume=True).step == 10


WRONG = {
    "no data": ({"data": None}, SettingError, r"data is not set: name a folder of shards"),
    "no size": ({"model": None}, SettingError, r"The size of the model is not set: --params 15M"),
    "a vocabulary too small": ({"model": MODEL | {"vocab_size": 300}}, SettingError, r"vocab_size is 300; .* have 320"),
    "rows too long": ({"sequence_length": 33}, SettingError, r"sequence_length is 33, longer than .* is 32"),
    "a prompt too long": ({"sample_prompts": ("The sea. " * 32,)}, SettingError, "context of 32 has no room for more"),
    "unknown field": ({"model": MODEL | {"hiden_size": 3}}, SettingError, r"\[model\] .* Did you mean 'hidden_size'"),
    "half a model": ({"model": {"hidden_size": 32}}, SettingError, r"\[model\] lacks intermediate_size, num_hidden"),
    "pieces that do not fit": (
        {"grad_accum_steps": 3},
        SettingError,
        r"grad_accum_steps is 3; it must divide the 4 rows",
    ),
    "shards for one process": ({"parallel": "fsdp"}, SettingError, r"parallel is 'fsdp', but there is one process"),
    "fp16 in shards": ({"parallel": "fsdp", "precision": "fp16"}, SettingError, r"do not go together: use 'bf16'"),
    "no such device": ({"device": "cuda:7"}, ConfigError, r"device is 'cuda:7', which is not here"),
    "a strange device": ({"device": "gpu"}, ConfigError, r"device is 'gpu', which is not here"),
    "a device of a long story": ({"device": "xla"}, ConfigError, r"is 'xla', which is not here: .{1,99}\. Use 'auto'"),
    "a device of a missing module": ({"device": "hpu"}, ConfigError, r"device is 'hpu', which is not here: No module"),
    "a device without numbers": ({"device": "meta"}, ConfigError, r"device is 'meta', which is not here: .*data\. Use"),
    "no shards": ({"data": "/nowhere"}, DataError, r"/nowhere is no folder of shards"),
    "a run as a beginning": ({"init": "RUN"}, CheckpointError, r"the folder of a run.*best;"),
    "a size and a checkpoint": (
        {"init": "RUN/latest", "params": "15M"},
        SettingError,
        r"whose shape is settled; leave out params",
    ),
    "a shape and a checkpoint": ({"init": "RUN/latest"}, SettingError, r"shape is settled; leave out hidden_size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(
    name: str, tiny_shards: Path, whole_run: Path, tmp_path: Path
) -> None:
    changes, error, message = WRONG[name]
    values = settings(tiny_shards, tmp_path / "run", **changes)
    if values.get("init"):
        values["init"] = values["init"].replace("RUN", str(whole_run))
        values["model"] = {"hidden_size": 32 if "params" in changes else 64}

    with pytest.raises(error, match=message):
        pretrain({key: value for key, value in values.items() if value is not None})

    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_tokenizer_is_no_beginning(tiny_shards: Path, whole_run: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(whole_run / "latest"), tmp_path / "ckpt")
    values = settings(tiny_shards, tmp_path / "run", init=str(tmp_path / "ckpt"))
    del values["model"]

    with pytest.raises(DataError, match="was prepared with another tokenizer"):
        pretrain(values)


def test_compiling_without_a_compiler_is_an_error(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(
        ConfigError, match=r"no C\+\+ compiler is here, which torch\.compile needs on CPUs: install g\+\+"
    ):
        pretrain(settings(tiny_shards, tmp_path / "run", compile=True))


def test_a_process_that_trains_keeps_others_out_of_its_folder(tiny_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    messages: list[str] = []

    class Second(SilentReporter):
        def step(self, record: object) -> None:
            """Start another process in the same folder; flock tells processes apart, not calls."""

            def train() -> None:
                with pytest.raises(TrainingError, match=r"Another process \(\d+\) is training in"):
                    pretrain(settings(tiny_shards, run), resume=True)

            messages.append(str(exit_status(fork(train))))

    pretrain(settings(tiny_shards, run, max_steps=1, warmup_steps=1), reporter=Second())

    assert messages == ["0"]
