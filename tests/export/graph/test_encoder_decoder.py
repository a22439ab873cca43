"""Models with an encoder beside transformers: logits, gradients, greedy tokens, and packages that answer."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import invoke
from gradient_check import check_gradients, gradients_of
from json_files import change_json
from make_tiny_model import CONFIG
from pair_models import ANSWER, MODELS, SOURCE, random_ids, theirs
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel
from unchecked_export import export_unchecked

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.config import ModelConfig
from edgelm.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    ExportError,
    PackageError,
    ProviderError,
)
from edgelm.package.manifest import Manifest
from edgelm.runtime.session import DecoderSession
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, QuantizedBlocks
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.mixed import Budget, export_mixed
from edgelm_export.quantize.keep import moved_types
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.sources import open_checkpoint
from edgelm_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from edgelm_training.model import Transformer, generate

# Float32 sums in another order, of scores that T5 does not scale. Measured, with logits up to 5.9: numpy 5.2e-5, ONNX
# 3.5e-5, PyTorch 1.7e-5.
TOLERANCE = 1e-4
TEXT = "the sea is blue and the boats are white"
GREEDY = edgelm.GenerationConfig(max_new_tokens=12)

SavePair = Callable[[str, Path], PreTrainedModel]


Exported = Callable[[str], tuple[PreTrainedModel, Path]]


@pytest.fixture(scope="module")
def exported(save_pair: SavePair, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return transformers' model, and a folder with its folder `hf` and its fp32 `package`: exported(name)."""

    @functools.cache
    def export(name: str) -> tuple[PreTrainedModel, Path]:
        folder = tmp_path_factory.mktemp("exported")
        model = save_pair(name, folder / "hf")
        export_unchecked(HuggingFaceCheckpoint(folder / "hf"), folder / "package", "fp32")
        import_checkpoint(folder / "hf", folder / "ours")
        return model, folder

    return export


def their_tokens(model: PreTrainedModel, source: list[int], count: int) -> list[int]:
    """Return transformers' answer without what it begins with."""
    begun = 1 + (model.generation_config.forced_bos_token_id is not None)
    with torch.no_grad():
        # Without a cache: transformers' own fails where a T5's stacks have different numbers of layers.
        answer = model.generate(
            torch.tensor([source]), max_new_tokens=count + begun - 1, do_sample=False, num_beams=1, use_cache=False
        )
    return answer[0, begun:].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_numpy_onnx_and_pytorch_give_the_logits_of_transformers(name: str, exported: Exported) -> None:
    model, folder = exported(name)
    expected_TV = theirs(model, SOURCE, ANSWER)
    with torch.no_grad():
        logits_TV = load_checkpoint(folder / "ours")(torch.tensor([ANSWER]), None, torch.tensor([SOURCE]))[0].numpy()
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=TOLERANCE)

    checkpoint = HuggingFaceCheckpoint(folder / "hf")
    expected_TV[:, list(checkpoint.config.suppressed_token_ids)] = -1e9  # for what chooses tokens
    (logits_TV,) = reference_logits(checkpoint, [ANSWER], [SOURCE])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=TOLERANCE)

    session = DecoderSession(folder / "package", ModelConfig.load(folder / "package"))
    cache = session.new_cache()
    cache.read_source(SOURCE)
    # Chunks and single steps: the cached positions must count, also where the cache grows.
    chunks = [(0, 128), (128, 145), *((start, start + 1) for start in range(145, 150))]
    rows = [session.forward(ANSWER[start:end], cache, all_logits=True).copy() for start, end in chunks]
    np.testing.assert_allclose(np.concatenate(rows), expected_TV, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name", ["t5", "t5 v1.1, untied", "umt5, untied", "bart", "marian", "m2m_100", "mbart", "pegasus", "t5gemma"]
)
def test_gradients_of_a_taught_answer_are_those_of_transformers(name: str, tmp_path: Path, save_pair: SavePair) -> None:
    """A folder with the gradients in the place of the weights is read as any other: names, parts and all."""
    model = save_pair(name, tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    ours = load_checkpoint(tmp_path / "ours")
    # Two sources of different lengths: padding must neither be seen nor be taught anything, beyond a window of 21 too.
    lengths = (30, 5)
    sources_BS = torch.full((2, 30), -1)
    for row, length in enumerate(lengths):
        sources_BS[row, :length] = torch.tensor(SOURCE[row : row + length])
    begin = ours.config.decoder_start_token_id
    labels_BT = torch.tensor([ANSWER[:12], ANSWER[12:24]])
    ids_BT = torch.cat((torch.full((2, 1), begin), labels_BT[:, :-1]), dim=1)
    their_logits = model(
        input_ids=sources_BS.clamp(min=3), attention_mask=(sources_BS >= 0).long(), decoder_input_ids=ids_BT
    ).logits
    losses = []
    for logits_BTV in (their_logits, ours(ids_BT, None, sources_BS)):
        losses.append(torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten()))
        losses[-1].backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    theirs, found = gradients_of(model, ours, tmp_path / "hf")
    theirs.pop("lm_head.bias", None)
    # transformers gives its padding, which the answer begins with, none.
    for gradients in (theirs, found):
        gradients["model.embed_tokens.weight"] = gradients["model.embed_tokens.weight"][3:]
    check_gradients(theirs, found)


# Their logits are compared for every row: of those that begin, end and leave out tokens alike, one is enough.
_ANSWERING = (
    "t5", "bart", "bart that begins with a language", "blenderbot-small", "marian", "marian without its padding",
    "m2m_100 that begins with a language", "pegasus", "t5gemma",
)  # fmt: skip


@pytest.mark.parametrize("name", _ANSWERING)
def test_a_loaded_package_answers_a_text_with_the_tokens_of_transformers(name: str, exported: Exported) -> None:
    model, folder = exported(name)
    loaded = edgelm.load(folder / "package")
    source = loaded.tokenizer.as_source(loaded.tokenizer.encode(TEXT))
    assert source == [*loaded.tokenizer.encode(TEXT), 2]
    config = GREEDY.replace(max_new_tokens=4)  # transformers reads all tokens again for each
    completion = loaded.generate(TEXT, config)
    assert list(completion.token_ids) == their_tokens(model, source, 4)
    assert completion.usage.prompt_tokens == len(source) + len(loaded.config.decoder_prompt_ids)
    assert "".join(chunk.text for chunk in loaded.stream(TEXT, config)) == completion.text
    # One after the other, each with its own source; and the plain loop in PyTorch.
    other = random_ids(40, 2)
    batch = loaded.generate_batch([TEXT, other], config)
    assert [list(one.token_ids) for one in batch] == [list(completion.token_ids), their_tokens(model, other, 4)]
    assert generate(load_checkpoint(folder / "ours"), source, 4) == list(completion.token_ids)
    with pytest.raises(ConfigError, match="max_batch is 0; it must be a whole number of 1 or more"):
        loaded.generate_batch([TEXT], GREEDY, max_batch=0)


def test_an_encoders_own_embedding_beside_its_operators_grid_is_named(tmp_path: Path, save_pair: SavePair) -> None:
    class OffGrid(CheckpointView):
        def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
            if name != "model.encoder.embed_tokens.weight":
                return super().quantized_blocks(name, rows)
            scales = np.ones((1, 2), np.float32)
            values, zeros = np.zeros((1, 2, 32), np.int8), np.ones((1, 2), np.int8)
            return QuantizedBlocks(bits=4, block_size=32, values=values, scales=scales, zero_points=zeros)

    save_pair("t5gemma", tmp_path / "hf")
    assert moved_types(OffGrid(HuggingFaceCheckpoint(tmp_path / "hf"))) == ("F32 of the encoder's embedding",)


def test_a_conversation_is_the_source_of_a_model_that_chats(tmp_path: Path, save_pair: SavePair) -> None:
    """As of T5Gemma: the template writes what the encoder reads, and nothing is put around that."""
    model = save_pair("t5gemma", tmp_path / "hf")
    template = "{{ '<|im_start|>' }}{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    (tmp_path / "hf/chat_template.jinja").write_text(template)
    export_package(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "fp32")
    loaded = edgelm.load(tmp_path / "package")
    messages = [edgelm.Message(role="user", content=TEXT)]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    source = tokenizer.apply_chat_template([dict(message) for message in messages], return_dict=False)
    assert list(loaded.chat(messages, GREEDY).token_ids) == their_tokens(model, source, 12)
    session = edgelm.ChatSession(loaded)
    for text in (TEXT, "and white"):
        messages = [*session.messages, edgelm.Message(role="user", content=text)]
        answer = "".join(chunk.text for chunk in session.send(text, GREEDY))
        assert answer == loaded.chat(messages, GREEDY).text
    session.save(tmp_path / "saved")
    assert edgelm.ChatSession.load(loaded, tmp_path / "saved").messages == session.messages
    asked = invoke("chat", tmp_path / "package", "--max-new-tokens", "12", stdin=f"{TEXT}\n")
    assert (asked.exit_code, session.messages[1]["content"] in asked.output) == (0, True), asked.output


def test_a_cache_is_of_one_source(exported: Exported, tmp_path: Path) -> None:
    model, folder = exported("bart")
    loaded = edgelm.load(folder / "package")
    cache = loaded.session.new_cache()
    for source in (SOURCE[:40], SOURCE[40:60], SOURCE[:40]):
        answer = edgelm.decoding.answer.join(loaded.stream(source, GREEDY, cache=cache))
        assert list(answer.token_ids) == their_tokens(model, source, 12)
    copied = cache.clone()
    np.testing.assert_array_equal(loaded.session.forward([7], copied), loaded.session.forward([7], cache))
    with pytest.raises(ConfigError, match="The cache of a model with an encoder is not saved"):
        cache.save(tmp_path / "cache.npz", loaded.fingerprint)
    with pytest.raises(ContextLengthError, match="The source has no tokens; write at least one character"):
        loaded.session.forward([7], loaded.session.new_cache())


@pytest.mark.parametrize("name", ["marian", "m2m_100 that begins with a language", "mbart"])
def test_beams_are_those_of_transformers(name: str, exported: Exported) -> None:
    model, folder = exported(name)
    begun = len(ModelConfig.load(folder / "package").decoder_prompt_ids)
    found = edgelm.load(folder / "package").generate(SOURCE[:20], GREEDY.replace(num_beams=3)).token_ids
    with torch.no_grad():
        expected = model.generate(torch.tensor([SOURCE[:20]]), max_new_tokens=11 + begun, do_sample=False, num_beams=3)
    assert list(found) == expected[0, begun:].tolist()


def test_a_forced_token_counts_in_the_length_by_which_beams_are_compared(exported: Exported) -> None:
    model, folder = exported("bart that begins with a language")
    loaded = edgelm.load(folder / "package")
    for source in (SOURCE[:10], SOURCE[10:20], SOURCE[20:30]):
        config = GREEDY.replace(num_beams=3, length_penalty=2.0, logit_bias={2: 5.5})  # the end token
        found = loaded.generate(source, config).token_ids
        bias = {"sequence_bias": [[[2], 5.5]], "length_penalty": 2.0}
        with torch.no_grad():
            expected = model.generate(torch.tensor([source]), max_new_tokens=13, do_sample=False, num_beams=3, **bias)
        assert list(found) == expected[0, 2:].tolist()


@pytest.mark.parametrize("name", ["bart that begins with a language", "t5"])
def test_what_its_author_wrote_of_lengths_and_repeats_is_done_as_in_transformers(
    name: str, tmp_path: Path, save_pair: SavePair
) -> None:
    """The least length counts all of the decoder's tokens: the one that it begins with, and the language."""
    save_pair(name, tmp_path / "hf")
    written = tmp_path / "hf/generation_config.json"
    begun, ends = 1 + name.endswith("language"), [2, *range(40, 250)]
    changed = 0
    of_source = {"min_length": 2, "encoder_no_repeat_ngram_size": 1}
    for settings in ({"min_length": 7}, {"min_length": 3, "min_new_tokens": 6}, {"min_length": 1}, of_source):
        change_json(written, **{"eos_token_id": ends, "no_repeat_ngram_size": 2, "min_new_tokens": None, **settings})
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
        assert HuggingFaceCheckpoint(tmp_path / "hf").notes == ()
        package = tmp_path / f"package{len(settings)}{settings['min_length']}"
        export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), package, "fp32")
        loaded = edgelm.load(package)
        for num_beams in (1, 3):
            config = loaded.generation_config.replace(max_new_tokens=9, num_beams=num_beams)
            found = loaded.generate(SOURCE[:20], config).token_ids
            with torch.no_grad():
                expected = model.generate(
                    torch.tensor([SOURCE[:20]]), max_new_tokens=8 + begun, do_sample=False, num_beams=num_beams,
                    use_cache=False,
                )  # fmt: skip
            assert list(found) == expected[0, begun:].tolist()
            plain = config.replace(min_new_tokens=0, no_repeat_ngram_size=0)
            changed += found != loaded.generate(SOURCE[:20], plain).token_ids
    assert changed


# The preset int4 keeps the outer layers in 8 bits, which are all that these models have.
INT4 = Precision(
    rules=(Rule(pattern="embed_tokens", scheme="int8-block64"), Rule(pattern=".", scheme="int4-block64")),
    name="all-int4",
)


# Measured: 0.0027, 0.0026, 7e-13, 0.12, 1.9e-6, 1.3e-4 nats.
@pytest.mark.parametrize(
    ("precision", "divergence"),
    [
        ("int8", 0.01),
        (PRECISIONS["int8"].with_standard_operators(), 0.01),
        (PRECISIONS["fp32"].with_standard_operators(), 1e-9),
        (INT4, 0.3),
        ("fp16", 1e-5),
        ("bf16", 5e-4),
    ],
    ids=["int8", "int8 in standard operators", "fp32 in standard operators", "int4", "fp16", "bf16"],
)
def test_a_package_of_fewer_bits_is_checked_against_its_source_and_answers(
    precision: str | Precision, divergence: float, tmp_path: Path, exported: Exported
) -> None:
    manifest = export_package(HuggingFaceCheckpoint(exported("t5")[1] / "hf"), tmp_path / "package", precision)
    assert manifest.quality is not None
    assert 0 < manifest.quality.mean_kl_divergence < divergence
    assert edgelm.load(tmp_path / "package").generate(TEXT, GREEDY).usage.completion_tokens > 0


def test_what_one_input_goes_to_may_be_stored_in_several_ways(tmp_path: Path, exported: Exported) -> None:
    rules = (Rule(pattern=r"q_proj|v_proj", scheme="bf16"), Rule(pattern=".", scheme="fp32"))
    checkpoint = HuggingFaceCheckpoint(exported("t5")[1] / "hf")
    manifest = export_package(checkpoint, tmp_path / "package", Precision(name="mine", rules=rules))
    assert manifest.quality is not None
    assert 0 < manifest.quality.mean_kl_divergence < 1e-4  # 5e-5 measured


def test_the_outer_layers_of_both_stacks_keep_eight_bits(tmp_path: Path, exported: Exported) -> None:
    manifest = export_package(HuggingFaceCheckpoint(exported("bart")[1] / "hf"), tmp_path / "package", "int4")
    assert {"pattern": r"layers\.(0|(?:1|2))\.", "scheme": "int8-block128"} in manifest.recipe


def test_both_graphs_share_one_embedding_on_disk_and_are_in_the_manifest(exported: Exported) -> None:
    _, folder = exported("bart")
    package, config = folder / "package", ModelConfig.load(folder / "package")
    names = {path.name for path in package.iterdir()}
    assert {"encoder.onnx", "decoder.onnx", "model.onnx.data"} <= names
    assert not {"model.onnx", "genai_config.json"} & names
    assert names - {"edgelm.json"} == {entry.path for entry in Manifest.load(package).files}
    pages = 4096 * len(config.tensor_shapes())
    assert (package / "model.onnx.data").stat().st_size < 4 * config.count_parameters() + pages


def test_run_show_and_verify_take_a_package_with_both_graphs(exported: Exported, tmp_path: Path) -> None:
    source, package = exported("t5")[1] / "hf", tmp_path / "package"
    quality = export_package(HuggingFaceCheckpoint(source), package, "fp32").quality
    assert quality is not None
    assert quality.max_logit_difference < TOLERANCE
    assert quality.greedy_agreement == quality.greedy_tokens == 32
    answer = invoke("run", package, TEXT, "--max-new-tokens", "12", "--json")
    assert tuple(json.loads(answer.stdout)["token_ids"]) == edgelm.load(package).generate(TEXT, GREEDY).token_ids
    assert "encoder layers        2" in invoke("show", package).stdout
    measured = invoke("bench", package)
    assert measured.exit_code == 1
    assert "package has an encoder; what is measured is how models continue one text" in measured.output
    verified = invoke("verify", package, "--source", source)
    assert verified.exit_code == 0, verified.output
    assert "FAILED" not in verified.output


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_a_damaged_graph_is_refused_by_file(name: str, tmp_path: Path, exported: Exported) -> None:
    shutil.copytree(exported("t5")[1] / "package", tmp_path / "package")
    content = bytearray((tmp_path / "package" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "package" / name).write_bytes(content)
    with pytest.raises(PackageError, match=name):
        edgelm.load(tmp_path / "package")


def test_graphs_that_do_not_belong_together_are_refused(exported: Exported, tmp_path: Path) -> None:
    package = exported("t5")[1] / "package"
    config = ModelConfig.load(package)
    for name in ("model.onnx.data", "decoder.onnx"):
        shutil.copy(package / name, tmp_path / name)
    shutil.copy(package / "decoder.onnx", tmp_path / "model.onnx")
    with pytest.raises(PackageError, match="has 6 keys and values of a source text; by the model's config they are 0"):
        DecoderSession(tmp_path, replace(config, encoder=None))
    shutil.copy(package / "decoder.onnx", tmp_path / "encoder.onnx")
    with pytest.raises(PackageError, match=r"encoder.onnx gives \d+ outputs, and not what the decoder beside it takes"):
        DecoderSession(tmp_path, config)


@pytest.fixture(scope="module")
def answering(exported: Exported) -> edgelm.LanguageModel:
    return edgelm.load(exported("t5")[1] / "package")


def test_a_source_that_onnx_runtime_fails_at_is_an_error_of_ours(answering: edgelm.LanguageModel) -> None:
    cache = answering.new_cache()
    cache.source_ids = (1 << 20,)  # beyond the vocabulary, which texts never are
    with pytest.raises(ProviderError, match="ONNX Runtime fails at the model's graph"):
        answering.session.forward([0], cache)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(TEXT, GREEDY.replace(speculation="prompt_lookup")), "speculation is 'prompt_l"),
        (
            lambda model: model.generate(TEXT, GREEDY.replace(token_healing=True)),
            "token_healing is True; package has",
        ),
        (
            lambda model: model.generate(TEXT, GREEDY.replace(target_language="fr")),
            "target_language is 'fr'; the model's tokenizer names no languages. Leave it out",
        ),
        (lambda model: model.embed([TEXT]), "package has an encoder, and reads two texts; embed is"),
        (lambda model: model.score(TEXT), "package has an encoder, and reads two texts; score is"),
        (lambda model: edgelm.Engine(model), "package has an encoder, whose answers an engine does not compute"),
        (lambda model: model.generate(TEXT, GREEDY.replace(context_shift=0)), "context_shift is 0; package has an"),
        (lambda model: model.chat([edgelm.Message(role="user", content=TEXT)]), "package has no chat template"),
        (
            lambda model: model.generate([5] * 513),
            r"The text has 513 tokens; this model's maximum context length is 512\. Shorten it\.$",
        ),
    ],
)
def test_what_needs_a_model_without_an_encoder_says_so(
    answering: edgelm.LanguageModel, call: Callable[[edgelm.LanguageModel], object], message: str
) -> None:
    with pytest.raises(edgelm.EdgeLMError, match=message):
        call(answering)


def test_an_answer_has_the_form_that_a_constraint_asks_for(answering: edgelm.LanguageModel) -> None:
    pytest.importorskip("llguidance")
    choice = GREEDY.replace(constraint=edgelm.Constraint.choices(["blue", "grey"]))
    assert answering.generate(TEXT, choice).text in ("blue", "grey")


def test_a_source_belongs_to_a_model_with_an_encoder(answering: edgelm.LanguageModel) -> None:
    ids_BT = torch.tensor([[1, 2]])
    with pytest.raises(ConfigError, match="The model has an encoder, so it needs a source text"):
        Transformer(answering.config)(ids_BT)
    with pytest.raises(ConfigError, match="The model has no encoder, so it takes no source text"):
        Transformer(CONFIG)(ids_BT, None, ids_BT)
    with pytest.raises(ContextLengthError, match="The source has 513 tokens; the model's context holds 512"):
        Transformer(answering.config)(ids_BT, None, torch.full((1, 513), 5))


def test_a_trained_model_with_an_encoder_goes_the_same_way(tmp_path: Path, exported: Exported) -> None:
    _, folder = exported("bart")
    model = load_checkpoint(folder / "ours")
    with torch.no_grad():
        model.model.decoder.layers[0].encoder_attn.v_proj.weight.mul_(-2)
    save_checkpoint(model, tmp_path / "trained", text_files_from=folder / "ours")
    with open_checkpoint(tmp_path / "trained") as checkpoint:
        export_package(checkpoint, tmp_path / "package", "fp32")
    loaded = edgelm.load(tmp_path / "package")
    assert list(loaded.generate(SOURCE[:30], GREEDY).token_ids) == generate(model, SOURCE[:30], 12)
    with pytest.raises(CheckpointError, match="is a model with an encoder, whose weights are not read back"):
        open_checkpoint(tmp_path / "package")


def test_what_needs_calibration_is_refused(tmp_path: Path, exported: Exported) -> None:
    checkpoint = HuggingFaceCheckpoint(exported("t5")[1] / "hf")
    with pytest.raises(ExportError, match="A t5 model with an encoder is quantized without calibration"):
        export_package(checkpoint, tmp_path / "package", "int2")
    with pytest.raises(ExportError, match="A t5 model with an encoder is quantized without calibration"):
        export_mixed(checkpoint, tmp_path / "package", Budget(size=10**6, divergence=None))
