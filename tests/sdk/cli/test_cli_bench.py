import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from command_line import invoke

from edgelm import speed
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError
from edgelm.loading import load
from edgelm.package.manifest import Manifest
from edgelm.testing import tiny_model_path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setattr(speed, "NEW_TOKENS", 4)


def test_every_rate_is_measured_in_every_round_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "speed.svg"
    arguments = [str(tiny_model_path()), "--json", "--rounds", "2", "--threads", "1", "-o", str(picture)]
    done = invoke("bench", *arguments)
    report = json.loads(done.stdout)
    rates = {rate["name"]: rate for rate in report["rates"]}
    assert list(rates) == ["load", "prompt of 512 tokens", "answer after 512 tokens", "answer after 32 tokens",
                           "8 answers at once"]  # fmt: skip
    assert all(len(rate["values"]) == (1 if name == "load" else 2) for name, rate in rates.items())
    assert all(value > 0 for rate in rates.values() for value in rate["values"])
    assert report["threads"] == 1
    texts = [node.text for node in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "what the memory allows" in texts


def test_a_name_that_no_picture_can_hold_does_not_break_it(package: Path, tmp_path: Path) -> None:
    dataclasses.replace(Manifest.load(package), name="a\x1b[31m\0\nb", precision="x\0\ny").save(package)
    done = invoke("bench", package, "--rounds", "1", "-o", tmp_path / "p.svg")
    assert done.stdout.splitlines()[0].startswith("a[31m⏎b · x⏎y · ")
    title = next(ElementTree.parse(tmp_path / "p.svg").iter("{http://www.w3.org/2000/svg}text")).text
    assert title is not None
    assert title.startswith("a[31m⏎b, x⏎y, ")


def test_the_bound_counts_the_weights_and_the_cache_of_one_step() -> None:
    model = load(tiny_model_path())
    assert model.config.tie_word_embeddings
    weights = 4 * model.config.count_parameters()
    assert speed._step_bytes(model.manifest, model.config, 100) == weights + 100 * model.config.kv_bytes_per_token
    bound = speed.Bound(bandwidth=1e9, step_bytes=1_000_000, after=100)
    assert bound.tokens_per_second == 1000


def test_the_bound_counts_weights_of_16_bits_as_they_are_in_memory() -> None:
    manifest, config = Manifest.load(tiny_model_path()), ModelConfig.load(tiny_model_path())
    halves = dataclasses.replace(manifest, recipe=({"pattern": ".", "scheme": "fp16"},))
    assert speed._step_bytes(halves, config, 0) == speed._step_bytes(manifest, config, 0)


def test_the_bound_counts_no_rows_of_tables_and_of_experts_those_that_a_step_chooses() -> None:
    manifest, config = Manifest.load(tiny_model_path()), ModelConfig.load(tiny_model_path())
    with_experts = dataclasses.replace(
        config, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, tie_word_embeddings=False
    )
    expert = 3 * 64 * config.hidden_size  # gate, up and down
    passed_over = config.num_hidden_layers * 6 * expert + config.vocab_size * config.hidden_size
    assert speed._step_bytes(manifest, with_experts, 0) == 4 * (with_experts.count_parameters() - passed_over)


@pytest.mark.parametrize("command", ["bench", "compare"])
def test_a_picture_is_not_put_into_a_package_which_would_not_load_with_it(
    command: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure", lambda *_, **__: pytest.fail("it was measured"))
    done = invoke(command, package, "-o", package / "speed.svg")
    assert done.exit_code == 2
    assert "package' is a model package, which holds nothing else. Draw beside it." in done.stderr
    assert not (package / "speed.svg").exists()


def test_the_table_names_what_was_measured() -> None:
    done = invoke("bench", tiny_model_path(), "--rounds", "1")
    assert done.exit_code == 0
    assert "prompt of 512 tokens" in done.stdout
    assert "the memory allows" in done.stdout
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", ["bench", "compare"])
@pytest.mark.parametrize(
    ("name", "words"),
    [("speed.png", "so let the name of 'speed.png' end in .svg"), ("no/speed.svg", "there is no folder 'no'")],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    command: str, name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure", lambda *_, **__: pytest.fail("it was measured"))
    done = invoke(command, tiny_model_path(), "-o", name)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_context_that_is_too_short_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PROMPT_TOKENS", 1024)
    with pytest.raises(ConfigError, match="has a context of 1024 tokens; measuring needs 1028"):
        speed.measure(tiny_model_path())


def test_the_median_is_not_moved_by_one_slow_round() -> None:
    assert speed.Rate(name="answer", unit="tokens/s", values=(100.0, 10.0, 101.0)).median == 100.0
