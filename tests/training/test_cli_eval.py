"""`edgelm eval`: perplexity of checkpoints and packages, against model.score, transformers and sums by hand."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from command_line import invoke
from json_files import edited_json
from make_tiny_model import make_checkpoint
from metaspace_tokenizer import write_metaspace
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import edgelm
from edgelm.cli import progress
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, DataError, TokenizerError
from edgelm.shell_word import shell_word
from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.verification.verification_text import verification_text
from edgelm_training.evaluation.checkpoint_scorer import CheckpointScorer
from edgelm_training.evaluation.held_out import HeldOut, held_out_documents
from edgelm_training.evaluation.perplexity import WindowConfig, measure_perplexity, windows
from edgelm_training.texts.shards import Shards

TEXT = verification_text()[:600]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the tiny package was exported from."""
    return make_checkpoint(tmp_path_factory.mktemp("eval") / "ckpt")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.txt"
    path.write_text(TEXT)
    return path


def run(*arguments: object) -> Result:
    return invoke("eval", *arguments)


def measured(*arguments: object) -> dict[str, float]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_short_text_has_the_perplexity_that_score_gives(text: Path) -> None:
    facts = measured(tiny_model_path(), "--data", text)

    scores = edgelm.load(tiny_model_path()).score(TEXT)
    # float32 rounding of each logarithm. Measured: 4e-9 of the perplexity.
    assert facts["perplexity"] == pytest.approx(scores.perplexity, rel=1e-6)
    assert facts["tokens"] == len(scores.tokens)
    assert facts["kind"] == "package"


def test_a_graph_of_another_program_is_scored_by_its_folder_too(tmp_path: Path, text: Path) -> None:
    folder = shutil.copytree(tiny_model_path(), tmp_path / "foreign")
    (folder / "edgelm.json").unlink()
    with edited_json(folder / "config.json") as config:
        del config["edgelm"]
    models = (folder, folder / "model.onnx", tiny_model_path())
    of_folder, of_graph, of_package = (measured(model, "--data", text)["perplexity"] for model in models)
    assert of_folder == of_graph == of_package


# A package reads 256 tokens at a time: windows of as many and one, and of more than are scored.
@pytest.mark.parametrize(("window", "stride"), [(48, 16), (257, 100), (300, 20)])
def test_a_checkpoint_and_its_package_are_scored_alike(checkpoint: Path, text: Path, window: int, stride: int) -> None:
    options = ("--data", text, "--window", window, "--stride", stride)
    ours, exported = measured(checkpoint, *options), measured(tiny_model_path(), *options)

    # Two float32 implementations of one model. Measured: 5e-8 of the perplexity.
    assert ours["perplexity"] == pytest.approx(exported["perplexity"], rel=1e-5)
    assert {**ours, "model": 0, "kind": 0, "perplexity": 0, "bits_per_byte": 0, "nats": 0} == {
        **exported, "model": 0, "kind": 0, "perplexity": 0, "bits_per_byte": 0, "nats": 0
    }  # fmt: skip
    assert (ours["kind"], exported["kind"]) == ("checkpoint", "package")


def test_windows_give_what_transformers_gives_with_the_same_stride(checkpoint: Path, text: Path) -> None:
    pytest.importorskip("transformers")
    from transformers_llama import load_llama

    window, stride = 64, 24
    model = load_llama(checkpoint)
    ids = torch.tensor([Tokenizer.load(checkpoint).encode(TEXT)])
    # The loop of transformers' guide to perplexity, in which windows end `stride` tokens after each other.
    nats, count, previous = 0.0, 0, 0
    for stop in [*range(window, ids.shape[1], stride), ids.shape[1]]:
        inputs = ids[:, max(0, stop - window) : stop]
        new = stop - previous
        labels = inputs.clone()
        labels[:, :-new] = -100
        with torch.no_grad():
            loss = model(inputs, labels=labels).loss
        scored = int((labels[:, 1:] != -100).sum())
        nats, count, previous = nats + float(loss) * scored, count + scored, stop

    facts = measured(checkpoint, "--data", text, "--window", window, "--stride", stride)

    assert facts["tokens"] == count
    # Another implementation in float32. Measured: 4e-8.
    assert facts["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)


class Counting:
    """A model that notes what it is asked, and is surprised by one nat each time."""

    kind, folder = "package", Path()

    def __init__(self) -> None:
        self.config = ModelConfig.load(tiny_model_path())
        self.tokenizer = Tokenizer.load(tiny_model_path())
        self.asked: list[tuple[list[int], int]] = []

    def surprises(self, ids: list[int], first: int) -> NDArray[np.float64]:
        self.asked.append((list(ids), first))
        return np.ones(len(ids) - first)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 10, 11, 12, 40, 41])
@pytest.mark.parametrize("stride", [1, 3, 7])
def test_each_token_is_scored_once_with_enough_before_it(length: int, stride: int) -> None:
    scored = []
    for part in windows(length, 1, window=8, stride=stride):
        assert part.stop - part.start <= 8
        assert part.start == 0 or part.first - part.start >= 8 - stride
        scored += range(part.first, part.stop)

    assert scored == list(range(1, length))


def test_a_terminal_is_told_that_the_texts_are_read(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 MB take half a minute before the first window."""
    monkeypatch.setattr(progress, "is_terminal", lambda _: True)
    monkeypatch.setattr(progress, "can_redraw", lambda _: False)
    lines = run(tiny_model_path(), "--data", text).stderr.splitlines()
    assert lines[:2] == ["Loading …", "Reading …"]
    assert lines[-1] == "score: 100 %"


def test_every_window_begins_as_a_text_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "leading_ids", (1,))
    scorer = Counting()
    ids = [1, *range(10, 30)]

    found = measure_perplexity(scorer, [HeldOut(ids=ids, given=1)], WindowConfig(window=8, stride=4))

    assert found.tokens == 20
    assert all(asked[0] == 1 for asked, _ in scorer.asked)
    assert [asked[first:] for asked, first in scorer.asked] == [ids[1:8], ids[8:12], ids[12:16], ids[16:20], ids[20:]]


def test_what_begins_otherwise_than_a_text_keeps_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "leading_ids", (1,))
    scorer, calls = Counting(), []
    ids = list(range(10, 30))
    config = WindowConfig(window=8, stride=4)

    found = measure_perplexity(scorer, [HeldOut(ids=ids, given=3)], config, progress=lambda *call: calls.append(call))

    assert [asked for asked, _ in scorer.asked] == [ids[0:8], ids[4:12], ids[8:16], ids[12:20]]
    assert [first for _, first in scorer.asked] == [3, 4, 4, 4]
    assert calls == [("score", done, 17) for done in (5, 9, 13, 17)]
    assert (found.tokens, found.documents) == (17, 1)


def test_control_tokens_are_scored_and_spell_no_bytes() -> None:
    scorer = Counting()
    ids = scorer.tokenizer.encode("The sea")
    found = measure_perplexity(scorer, [HeldOut(ids=[*ids, 1, 2], given=1)])
    assert found.tokens == len(ids) + 1
    assert found.bytes == len("The sea") - len(scorer.tokenizer.token_bytes(ids[0]))


@pytest.mark.parametrize(("leading", "count"), [((1,), 6), ((), 4)])  # without any, "▁h" is given
def test_the_space_that_a_tokenizer_puts_before_a_text_is_none_of_its_bytes(
    leading: tuple[int, ...], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "leading_ids", leading)
    scorer = Counting()
    scorer.tokenizer = Tokenizer.load(write_metaspace(tmp_path))
    (tmp_path / "text.txt").write_text("hi sea")
    documents = held_out_documents((str(tmp_path / "text.txt"),), scorer.tokenizer, tmp_path)

    assert measure_perplexity(scorer, documents).bytes == count


@pytest.mark.parametrize("leading", [(), (1,), (1, 2)])
def test_a_text_is_one_document_behind_what_its_tokenizer_puts_before_it(
    leading: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "leading_ids", leading)
    (tmp_path / "long.txt").write_text(verification_text() * 7)  # longer than training would have it
    tokenizer = Tokenizer.load(tiny_model_path())

    (document,) = held_out_documents((str(tmp_path / "long.txt"),), tokenizer, tiny_model_path())

    assert document.ids == [*leading, *tokenizer.encode(verification_text() * 7)]
    assert document.given == max(1, len(leading))


def test_of_a_long_text_no_more_is_encoded_than_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.txt").write_text((verification_text() + " " * 40_000) * 3)
    whole = measured(tiny_model_path(), "--data", tmp_path / "long.txt", "--window", 64, "--max-tokens", 300)
    encoded: list[int] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: [encoded.append(len(text)), encode(self, text)][1])
    (document,) = held_out_documents(
        (str(tmp_path / "long.txt"),), Tokenizer.load(tiny_model_path()), tiny_model_path(), max_tokens=300
    )
    assert max(encoded) < 40_000
    assert document.ids[:301] == encode(Tokenizer.load(tiny_model_path()), verification_text())[:301]
    assert whole["tokens"] == 300


def test_what_is_named_twice_is_read_once_and_what_is_missing_is_named_before_the_first_text(
    tmp_path: Path, tiny_shards: Path
) -> None:
    tokenizer = Tokenizer.load(tiny_shards)
    (tmp_path / "a.txt").write_text("The sea")
    (tmp_path / "b.txt").write_text("is blue")
    paths = (
        f"{tmp_path}/b.txt",
        str(tiny_shards),
        str(tmp_path),
        f"{tmp_path}/../{tmp_path.name}/b.txt",
        str(tiny_shards),
    )

    found = [document.ids for document in held_out_documents(paths, tokenizer, tiny_shards)]

    shards = Shards.open(tiny_shards, "validation")
    held_out = [shards.document(number).tolist() for number in range(shards.num_documents)]
    assert found == [tokenizer.encode("is blue"), *held_out, tokenizer.encode("The sea")]
    with pytest.raises(DataError, match=r"none\.txt"):
        next(held_out_documents((f"{tmp_path}/a.txt", f"{tmp_path}/none.txt"), tokenizer, tiny_shards))


def test_a_window_is_the_context_or_1024_tokens_and_a_stride_half_of_it() -> None:
    assert WindowConfig().sizes(512) == (512, 256)
    assert WindowConfig().sizes(4096) == (1024, 512)
    assert WindowConfig(window=2).sizes(512) == (2, 1)
    assert WindowConfig(window=8, stride=6).sizes(8, leading=2) == (8, 6)
    with pytest.raises(ConfigError, match=r"stride is 7; with a window of 8 tokens it must be 6 or less\."):
        WindowConfig(window=8, stride=7).sizes(8, leading=2)


def test_bits_per_byte_count_the_bytes_of_the_scored_tokens(text: Path) -> None:
    facts = measured(tiny_model_path(), "--data", text)

    first = Tokenizer.load(tiny_model_path()).encode(TEXT)[0]
    unscored = len(Tokenizer.load(tiny_model_path()).token_bytes(first))
    assert facts["bytes"] == len(TEXT.encode()) - unscored
    nats = math.log(facts["perplexity"]) * facts["tokens"]
    assert facts["bits_per_byte"] == pytest.approx(nats / math.log(2) / facts["bytes"])


def test_documents_are_scored_each_by_itself(tmp_path: Path) -> None:
    parts = [part for part in verification_text().split("\n\n") if part][:3]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"body": part}) + "\n" for part in parts))
    (tmp_path / "texts.txt").write_text("\n\n".join(parts))
    model = edgelm.load(tiny_model_path())
    logprobs = [token.logprob for part in parts for token in model.score(part).tokens]

    facts = measured(tiny_model_path(), "--data", tmp_path / "texts.jsonl", "--field", "body")

    assert facts["documents"] == 3
    assert facts["perplexity"] == pytest.approx(math.exp(-np.mean(logprobs)), rel=1e-6)
    assert "of 3 documents" in run(tiny_model_path(), "--data", tmp_path / "texts.txt", "--split-on", "").stdout


def test_shards_are_scored_with_the_tokens_around_their_documents(tiny_shards: Path, checkpoint: Path) -> None:
    # The tokenizer of the shards is the package's, byte for byte.
    (checkpoint / "tokenizer.json").write_bytes((tiny_shards / "tokenizer.json").read_bytes())
    facts = measured(checkpoint, "--data", tiny_shards)

    assert facts["tokens"] == 66 - facts["documents"]
    assert measured(checkpoint, "--data", tiny_shards, "--split", "train", "--max-tokens", 100)["tokens"] == 100


def test_the_figures_are_shown(text: Path) -> None:
    result = run(tiny_model_path(), "--data", text, "--max-tokens", 50)

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("  perplexity     3")
    assert "over 50 tokens" in result.stdout
    assert "of 1 document, in windows of 1024 with a stride of 512" in result.stdout


def test_scoring_a_package_imports_no_torch(text: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgelm.cli.main import main\n"
        f"main(['eval', {str(tiny_model_path())!r}, '--data', {str(text)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout


def test_a_checkpoint_without_torch_says_what_to_install(checkpoint: Path, text: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgelm.cli.main import main\n"
        f"main(['eval', {str(checkpoint)!r}, '--data', {str(text)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 1
    assert 'pip install "edgelm[train]". A package needs neither.' in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "1"], "window is 1; it must be 2 or more"),
        (["--window", "2000"], "window is 2000; the model's context holds 1024 tokens"),
        (["--window", "8", "--stride", "8"], "stride is 8; with a window of 8 tokens it must be 7 or less"),
        (["--stride", "0"], "stride is 0; it must be 1 or more"),
        (["--max-tokens", "0"], "max_tokens is 0; it must be 1 or more"),
    ],
)
def test_windows_that_do_not_fit_are_refused(options: list[str], message: str, text: Path) -> None:
    result = run(tiny_model_path(), "--data", text, *options)

    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(("factor", "shown"), [(1e6, "inf"), (math.nan, "nan")])
def test_a_model_that_is_broken_has_a_perplexity_beyond_all_numbers_or_none(
    factor: float, shown: str, tmp_path: Path, text: Path
) -> None:
    folder = make_checkpoint(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    assert f"perplexity     {shown}\n" in run(folder, "--data", text).stdout
    assert measured(folder, "--data", text)["perplexity"] is None


def test_what_is_no_model_is_named(tmp_path: Path, text: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for link in ("latest", "best"):
        (tmp_path / "run" / link).mkdir()
        wanted = f"is the folder of a run. Name one of its checkpoints: {tmp_path / 'run' / link}."
        assert wanted in run(tmp_path / "run", "--data", text).stderr
    (tmp_path / "run/best/adapter_config.json").write_text("{}")
    assert "Merge it into its base first: edgelm merge" in run(tmp_path / "run", "--data", text).stderr
    (tmp_path / "my adapter").mkdir()
    (tmp_path / "my adapter/adapter_config.json").write_text("{}")
    message = f"Merge it into its base first: edgelm merge {shell_word(tmp_path / 'my adapter')} -o merged/"
    assert message in run(tmp_path / "my adapter", "--data", text).stderr
    assert "There is no checkpoint or package at" in run(tmp_path / "none", "--data", text).stderr
    assert "'~nosuchuser/x' is no path: " in run("~nosuchuser/x", "--data", text).stderr


def test_data_without_anything_to_score_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")

    result = run(tiny_model_path(), "--data", tmp_path / "empty.txt")

    assert result.exit_code == 1
    assert "The data has no text to score" in result.stderr


def test_a_token_beyond_the_vocabulary_is_named() -> None:
    with pytest.raises(TokenizerError, match="token id 320; the model's are 0 to 319"):
        measure_perplexity(Counting(), [HeldOut(ids=[3, 320], given=1)])


def test_shards_of_another_tokenizer_are_refused(tiny_shards: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "other")
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")

    assert "was prepared with another tokenizer" in run(folder, "--data", tiny_shards).stderr


def test_a_device_that_is_not_here_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="device is 'nowhere', which is not here"):
        CheckpointScorer(checkpoint, device="nowhere")


def test_a_device_for_a_package_is_refused_and_not_passed_over(text: Path) -> None:
    result = run(tiny_model_path(), "--data", text, "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cuda is for checkpoints; a package is scored on the CPU." in result.stderr


def test_what_is_of_texts_alone_or_of_shards_alone_is_refused_with_the_other(text: Path, tiny_shards: Path) -> None:
    for data, options, message in (
        (text, ("--split", "train"), f"split is 'train', and {text} is no folder of shards. Leave it out."),
        (tiny_shards, ("--split-on", ""), "split_on is '', and the documents of shards are cut already. Leave it out."),
        (tiny_shards, ("--field", "story"), "field is 'story', and the documents of shards are cut already."),
    ):
        result = run(tiny_model_path(), "--data", data, *options)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_split_without_documents_is_refused(
    tiny_shards: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards.open(tiny_shards, "validation")
    shards.num_documents = 0
    monkeypatch.setattr(Shards, "open", lambda *_: shards)
    monkeypatch.setattr(Shards, "check_tokenizer", lambda *_: None)

    with pytest.raises(DataError, match=r"has no documents in its validation split\. Choose another: --split\."):
        list(held_out_documents((str(tiny_shards),), Tokenizer.load(tiny_shards), checkpoint))
