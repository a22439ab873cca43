"""Settings that users write, in TOML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from fuzz.mutations import mutate_bytes
from fuzz.target import Target, all_of

from edgelm.architecture.quantization_recipe import read_recipe
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import read_settings


def _toml_seeds(_folder: Path) -> list[bytes]:
    recipe = """
name = "mine"
transforms = ["smooth"]
perplexity_bound = 1.5
[[rules]]
pattern = "down_proj"
scheme = "int8-block64"
[[rules]]
pattern = "."
scheme = "int4-block64"
"""
    settings = """
output = 'run'
data = "shards"  # by edgelm data
max_steps = 1_000
learning_rate = 3e-4
weight_decay = 0
tensorboard = false
[model]
hidden_size = 64
rope_scaling = {type = "linear", factor = 2.0}
"""
    return [recipe.encode(), settings.encode()]


def _mutate_toml(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Put values that TOML allows in the place of some, and change bytes."""
    lines = data.split(b"\n")
    for _ in range(random.choice((0, 1, 2))):
        place = random.randrange(len(lines))
        key, sign, _value = lines[place].partition(b"=")
        if sign:
            lines[place] = key + b"=" + random.choice(_TOML_VALUES)
    result = b"\n".join(lines)
    return mutate_bytes(result, random, others) if random.random() < 0.7 else result


_TOML_VALUES = (
    b"0", b"-1", b"9" * 400, b"1e400", b"nan", b"-inf", b"true", b"''", b"'x'", b'"\\ud800"', b"[]", b"{}",
    b"1979-05-27", b"[" * 2000 + b"]" * 2000, b"{a = " * 300 + b"1" + b"}" * 300, b"[1, 'a']", b"0x" + b"f" * 5000,
    b"'" + b"x" * 5000 + b"'",
)  # fmt: skip


def _read_toml(folder: Path) -> None:
    """Read one file as each of the settings that users write."""
    path = folder / "settings.toml"
    all_of(
        lambda: read_recipe(path),
        lambda: PretrainConfig(**read_settings(path, PretrainConfig)),
    )


ROWS: dict[str, Target] = {
    "toml": Target(
        file="settings.toml", prepare=_toml_seeds, mutate=_mutate_toml, read=_read_toml, count=120,
        long_count=100_000,
    ),
}  # fmt: skip
