"""Settings: the same ones in a dataclass, in TOML and as flags; what is wrong is named."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from tiny_training_runs import settings, stop_at

from edgelm.errors import ConfigError
from edgelm_training.cli.setting_options import given_settings
from edgelm_training.pretrain import pretrain
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.schedule import SCHEDULES, Schedule
from edgelm_training.settings.settings import checked_settings, read_settings, setting, to_toml, value_type
from edgelm_training.settings.train_config import TrainConfig


def test_a_config_survives_its_toml_file(tmp_path: Path) -> None:
    config = PretrainConfig(
        output='a "run"\\\n\x7f',
        max_steps=7,
        adam_epsilon=1e-9,
        grad_clip=math.inf,
        compile=True,
        sample_prompts=("Die See", ""),
        model={"hidden_size": 32, "rope_scaling": {"rope_type": "default", "attention_factor": None}},
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")

    read = PretrainConfig(**read_settings(path, PretrainConfig))

    expected_model = {"hidden_size": 32, "rope_scaling": {"rope_type": "default"}}
    assert read == dataclasses.replace(config, model=expected_model)


def test_settings_of_a_program_may_be_paths_and_numbers_of_numpy_and_have_the_types_of_a_file(tmp_path: Path) -> None:
    given = {
        "data": tmp_path, "learning_rate": np.float64(1e-3), "weight_decay": np.float32(0.5), "seed": np.int64(3),
        "grad_clip": 1, "max_steps": None, "sample_prompts": ["The", tmp_path],
    }  # fmt: skip

    checked = checked_settings(given, PretrainConfig)

    assert {name: type(value) for name, value in checked.items()} == {
        "data": str, "learning_rate": float, "weight_decay": float, "seed": int, "grad_clip": float,
        "max_steps": type(None), "sample_prompts": tuple,
    }  # fmt: skip
    assert checked == {**given, "data": str(tmp_path), "sample_prompts": ("The", str(tmp_path))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_step": 3}, r"There is no setting 'max_step'\. Did you mean 'max_steps'\?"),
        ({"max_steps": "3"}, r"max_steps is '3'; it must be a whole number\."),
        ({"sample_prompts": "abc"}, r"sample_prompts is 'abc'; it must be a list of texts\."),
        ({"save_every": None}, r"save_every is None; it must be a whole number\."),
        ({"data": "caf\udce9/"}, r"data is 'caf\\udce9/', which is no UTF-8, .* another name"),
        ({"sample_prompts": ["a", "\udce9"]}, r"sample_prompts is \('a', '\\udce9'\), which is no UTF-8"),
    ],
)
def test_a_wrong_setting_of_a_program_is_named_as_that_of_a_file_is(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain({"output": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


def test_a_setting_of_ones_own_that_no_file_could_hold_is_refused_where_it_is_declared() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(TrainConfig):
        kind: Literal["a", "b"] = "a"
        corpus: Path | None = None

    for given in ({"kind": "b"}, {"corpus": Path("texts")}):
        (name,) = given
        with pytest.raises(ConfigError, match=rf"OwnConfig\.{name} is declared as .*; a setting is an int, float"):
            checked_settings(given, OwnConfig)


BROKEN = {
    "max_stepz = 3": r"small\.toml: There is no setting 'max_stepz'\. Did you mean 'max_steps'\?",
    "qqqq = 3": r"There is no setting 'qqqq'\. Known: output, seed, max_steps",
    'max_steps = "many"': r"max_steps is 'many'; it must be a whole number\.",
    "max_steps = true": r"max_steps is True; it must be a whole number\.",
    "learning_rate = [1]": r"learning_rate is \[1\]; it must be a number\.",
    "learning_rate = true": r"learning_rate is True; it must be a number\.",
    f"learning_rate = 1{'0' * 400}": r"learning_rate is 1000+; it must be a number\.",
    f"max_steps = [0x1{'0' * 5000}]": r"small\.toml: .*limit",
    f"model = {'[' * 10_000}": r"Cannot read .*small\.toml: .*recursion",
    "compile = 1": r"compile is 1; it must be true or false\.",
    "sample_prompts = [1]": r"sample_prompts is \[1\]; it must be a list of texts\.",
    "model = 3": r"model is 3; it must be a table\.",
    "output = 3": r"output is 3; it must be a text\.",
    "max_steps = ": r"Cannot read .*small\.toml: ",
}


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:30])
def test_a_broken_settings_file_says_where(text: str, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=BROKEN[text]):
        read_settings(path, PretrainConfig)


def test_a_missing_settings_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read .*none\.toml: .*No such file"):
        read_settings(tmp_path / "none.toml", PretrainConfig)


def test_flags_win_over_the_file_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text("max_steps = 5\nlearning_rate = 1\n[model]\nhidden_size = 32\nnum_hidden_layers = 2\n")
    flags: dict[str, Any] = {
        "max_steps": 9,
        "seed": None,
        "sample_prompts": (),
        "model": ("hidden_size=64", "qk_norm=true", "hidden_act=gelu"),
    }

    settings = given_settings(PretrainConfig, flags, path, resume=True)

    assert settings == {
        "max_steps": 9,
        "learning_rate": 1.0,
        "model": {"hidden_size": 64, "num_hidden_layers": 2, "qk_norm": True, "hidden_act": "gelu"},
    }


def test_a_model_flag_without_a_value_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"--model is 'hidden_size'; write it as KEY=VALUE"):
        given_settings(PretrainConfig, {"model": ("hidden_size",)}, None, resume=True)


WRONG: dict[str, Any] = {
    "max_steps": (0, r"max_steps is 0; it must be 1 or more\."),
    "seed": (2**32 + 1, r"seed is 4294967297; it must be from 0 to 4294967296\."),
    "learning_rate": (math.nan, r"learning_rate is nan; it must be from 1e-12 to 10\."),
    "decay_fraction": (1.5, r"decay_fraction is 1\.5; it must be from 0 to 1\."),
    "schedule": ("cos", r"schedule is 'cos'; it must be one of cosine, linear, wsd, constant\."),
    "optimizer": ("sgd", r"optimizer is 'sgd'; it must be one of adamw, muon\."),
    "precision": ("int8", r"precision is 'int8'; it must be one of auto, fp32, bf16, fp16\."),
    "parallel": ("dp", r"parallel is 'dp'; it must be one of auto, ddp, fsdp\."),
    "output": ("", r"output is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_out_of_range_is_an_error(name: str) -> None:
    value, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{name: value})


# Each number, with values that are just outside of what it can be.
COUNTS = (
    "max_steps", "sequence_length", "global_batch_size", "micro_batch_size", "grad_accum_steps", "save_every",
    "keep_last", "eval_rows", "sample_tokens", "log_every",
)  # fmt: skip
AMOUNTS = ("warmup_steps", "grad_clip", "eval_every", "sample_every")
SHARES = ("decay_fraction", "min_learning_rate_ratio", "teacher_weight")
OUTSIDE: dict[str, tuple[float, ...]] = (
    dict.fromkeys(COUNTS, (0,))
    | dict.fromkeys(AMOUNTS, (-1,))
    | dict.fromkeys(SHARES, (-0.1, 1.1))
    | dict.fromkeys(("beta1", "beta2", "momentum"), (-0.1, 1.0))
    | {"seed": (-1, 2**32 + 1), "learning_rate": (0, 11), "sample_temperature": (-0.1, 101)}
    | dict.fromkeys(("weight_decay", "z_loss"), (-1, 1001, math.inf))  # endless ones end in weights that are no numbers
    | {"adam_epsilon": (-1, 11, math.inf), "teacher_temperature": (0.001, 101), "threads": (0, 1025)}
)


def test_every_number_has_a_range() -> None:
    numbers = {
        field.name for field in dataclasses.fields(TrainConfig) if value_type(TrainConfig, field.name) in (int, float)
    }
    assert numbers == OUTSIDE.keys()
    for name, values in OUTSIDE.items():
        for value in values:
            with pytest.raises(ConfigError, match=rf"^{name} is {value}; it must be"):
                TrainConfig(**{name: value})


def test_a_setting_of_a_recipe_is_one_of_its_choices() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(TrainConfig):
        mean: str = setting("none", "Of the weights.", choices=("none", "moving"))

    assert OwnConfig(mean="moving").mean == "moving"
    with pytest.raises(ConfigError, match=r"mean is 'movin'; it must be one of none, moving\."):
        OwnConfig(mean="movin")


def test_a_warm_up_longer_than_the_run_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps is 11; it must be at most max_steps \(10\)\."):
        TrainConfig(max_steps=10, warmup_steps=11)


def test_a_setting_that_the_recipe_left_open_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"learning_rate is not set\."):
        TrainConfig().known("learning_rate")


# Peak 1, ten steps of warm-up, a hundred behind it, down to a tenth; each by hand.
RATES = {
    "cosine": {5: 0.5, 10: 1.0, 35: 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 60: 0.55, 110: 0.1},
    "linear": {1: 0.1, 10: 1.0, 35: 0.775, 60: 0.55, 110: 0.1},
    "wsd": {10: 1.0, 89: 1.0, 95: 0.1 + 0.9 * 0.5, 110: 0.1},
    "constant": {1: 0.1, 10: 1.0, 60: 1.0, 110: 1.0},
}


@pytest.mark.parametrize("shape", SCHEDULES)
def test_learning_rates_follow_their_shape(shape: str) -> None:
    schedule = Schedule(shape=shape, peak=1.0, warmup_steps=10, max_steps=110, decay_fraction=0.2, min_ratio=0.1)

    # Exact but for the last bits of float64.
    assert {step: schedule.learning_rate(step) for step in RATES[shape]} == pytest.approx(RATES[shape], abs=1e-12)


def test_a_wsd_run_without_a_decay_stays_at_its_peak() -> None:
    schedule = Schedule(shape="wsd", peak=1.0, warmup_steps=0, max_steps=10, decay_fraction=0.0, min_ratio=0.0)
    assert [schedule.learning_rate(step) for step in (1, 10)] == [1.0, 1.0]


@pytest.mark.parametrize("decay_fraction", [0.01, 0.05, 0.3, 1.0])
def test_a_wsd_run_without_a_floor_ends_at_exactly_0(decay_fraction: float) -> None:
    schedule = Schedule(
        shape="wsd", peak=1.0, warmup_steps=2, max_steps=100, decay_fraction=decay_fraction, min_ratio=0.0
    )
    assert schedule.learning_rate(100) == 0.0


def test_a_warmup_that_nobody_set_follows_another_length_of_the_run(tiny_shards: Path, tmp_path: Path) -> None:
    run = {"output": str(tmp_path / "run")}
    long = settings(tiny_shards, tmp_path / "run", max_steps=200, warmup_steps=None, eval_every=0, sample_every=0)
    stop_at(1, lambda reporter: pretrain(long, reporter=reporter))

    assert pretrain(run | {"max_steps": 2}, resume=True).step == 2  # 2 % of 200 are more

    pretrain(run | {"max_steps": 3, "warmup_steps": 3}, resume=True)
    with pytest.raises(ConfigError, match=r"warmup_steps is 3; it must be at most max_steps \(2\)\."):
        pretrain(run | {"max_steps": 2}, resume=True)
