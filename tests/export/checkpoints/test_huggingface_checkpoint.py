from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from json_files import change_json, edited_json
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from unchecked_export import export_unchecked

import edgelm
from edgelm.config import SECTION
from edgelm.errors import CheckpointError
from edgelm.text.chat_template import ChatTemplate, template_of
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveLlama = Callable[..., LlamaForCausalLM]
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def assert_same_tensors(checkpoint: HuggingFaceCheckpoint, model: LlamaForCausalLM) -> None:
    state = model.state_dict()
    for name in checkpoint.config.tensor_shapes():
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, state[name].float().numpy(), err_msg=name)
        assert checkpoint.quantized_blocks(name) is None


@pytest.mark.parametrize("stored", DTYPES)
def test_every_tensor_is_read_exactly_from_each_float_type(tmp_path: Path, save_llama: SaveLlama, stored: str) -> None:
    model = save_llama(tmp_path, dtype=DTYPES[stored], attention_bias=True, tie_word_embeddings=False)
    with HuggingFaceCheckpoint(tmp_path) as checkpoint:
        assert_same_tensors(checkpoint, model)
        assert {checkpoint.stored_type(name) for name in checkpoint.config.tensor_shapes()} == {stored}


def test_one_number_is_read_where_a_vector_of_one_may_be(tmp_path: Path, save_model: SaveLlama) -> None:
    model = save_model("apertus", tmp_path, pad_token_id=0)
    path = tmp_path / "model.safetensors"
    save_file({name: x.reshape(()) if "alpha" in name else x for name, x in load_file(path).items()}, path)
    name = "model.layers.1.mlp.act_fn.alpha_p"
    np.testing.assert_array_equal(HuggingFaceCheckpoint(tmp_path).tensor(name), [model.state_dict()[name].item()])


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_the_model_below_the_head_is_read_by_its_names(
    tmp_path: Path, save_llama: SaveLlama, tied: bool
) -> None:
    """As Qwen3's models for embeddings are published."""
    model = save_llama(tmp_path, tie_word_embeddings=tied)
    path = tmp_path / "model.safetensors"
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    with HuggingFaceCheckpoint(tmp_path) as checkpoint:
        assert_same_tensors(checkpoint, model)


@pytest.mark.parametrize(("family", "prefix"), [("falcon", "transformer."), ("gpt_neox", "gpt_neox.")])
def test_a_folder_below_the_head_is_read_where_another_prefix_is_missing(
    tmp_path: Path, save_model: SaveLlama, family: str, prefix: str
) -> None:
    save_model(family, tmp_path, pad_token_id=0)
    whole = HuggingFaceCheckpoint(tmp_path)
    expected = {name: whole.tensor(name) for name in whole.config.tensor_shapes()}
    path = tmp_path / "model.safetensors"
    save_file({name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}, path)
    bare = HuggingFaceCheckpoint(tmp_path)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(bare.tensor(name), tensor, err_msg=name)


def test_a_large_tensor_is_read_in_portions_and_equals_the_stored_one(
    tmp_path: Path, save_llama: SaveLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm_export.sources.huggingface._PORTION_VALUES", 1000)
    model = save_llama(tmp_path, dtype=torch.bfloat16)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert_same_tensors(checkpoint, model)
    for name in checkpoint.config.tensor_shapes():
        (tmp_path / "model.safetensors").write_bytes(b"")  # under its reader's hands
        with pytest.raises(CheckpointError, match="cannot be read"):
            checkpoint.tensor(name)


def test_a_tensor_of_a_few_portions_is_read_without_threads(
    tmp_path: Path, save_llama: SaveLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm_export.sources.huggingface._PORTION_VALUES", 5000)
    monkeypatch.setattr("edgelm_export.sources.huggingface.ThreadPoolExecutor", None)
    model = save_llama(tmp_path, dtype=torch.bfloat16)
    assert_same_tensors(HuggingFaceCheckpoint(tmp_path), model)


def test_a_sharded_folder_reads_as_one_file_does(tmp_path: Path, save_llama: SaveLlama) -> None:
    model = save_llama(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert_same_tensors(checkpoint, model)
    assert len(checkpoint.source["files"]) == len(list(tmp_path.glob("*.safetensors")))


def test_the_source_names_its_files_with_size_and_hash(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path)
    (entry,) = HuggingFaceCheckpoint(tmp_path).source["files"]
    assert entry["path"] == "model.safetensors"
    assert entry["size"] == (tmp_path / "model.safetensors").stat().st_size
    assert len(entry["sha256"]) == 64


def test_the_ends_in_generation_config_are_end_tokens_too(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path, eos_token_id=2)
    change_json(tmp_path / "generation_config.json", eos_token_id=[0, 2])
    assert HuggingFaceCheckpoint(tmp_path).config.eos_token_ids == (2, 0)

    change_json(tmp_path / "generation_config.json", eos_token_id="</s>")
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}/generation_config.json: eos_token_id is"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize("listed_in", ["tokenizer_config.json", "tokenizer.json", "added_tokens.json"])
def test_the_end_token_of_the_tokenizer_is_an_end_token_too(
    tmp_path: Path, save_llama: SaveLlama, listed_in: str
) -> None:
    """As in models that were fine-tuned to converse, whose config.json is that of their base."""
    save_llama(tmp_path, eos_token_id=0)
    change_json(tmp_path / "generation_config.json", eos_token_id=0)
    tokens = [{"id": id_, "content": text} for id_, text in ((0, "<|pad|>"), (2, "<|im_end|>"), (999, "[end]"))]
    listed = None
    if listed_in == "tokenizer.json":
        change_json(tmp_path / listed_in, added_tokens=tokens)
    elif listed_in == "added_tokens.json":
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / listed_in).write_text(json.dumps({token["content"]: token["id"] for token in tokens}))
    else:
        listed = {str(token.pop("id")): token for token in tokens}
    ends = {"<|im_end|>": (0, 2), "<|pad|>": (0,), "[end]": (0,), "</s>": (0,)}
    for end, ids in ends.items():
        for named in (end, {"content": end}):
            change_json(tmp_path / "tokenizer_config.json", eos_token=named, added_tokens_decoder=listed)
            assert HuggingFaceCheckpoint(tmp_path).config.eos_token_ids == ids
    change_json(tmp_path / "tokenizer_config.json", eos_token=None)
    assert HuggingFaceCheckpoint(tmp_path).config.eos_token_ids == (0,)


def test_the_section_of_edgelm_decides_where_it_is_there(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path)
    section = HuggingFaceCheckpoint(tmp_path).config.to_dict() | {"model_type": "custom"}
    change_json(tmp_path / "config.json", **{SECTION: section, "model_type": "custom"})
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.config.model_type == "custom"
    assert SECTION not in checkpoint.hf_config


def test_a_broken_section_of_edgelm_is_refused_with_its_file(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path)
    change_json(tmp_path / "config.json", **{SECTION: {"colour": "blue"}})
    with pytest.raises(CheckpointError, match=r"config.json: The 'edgelm' section .*colour"):
        HuggingFaceCheckpoint(tmp_path)
    change_json(tmp_path / "config.json", **{SECTION: [1]})
    with pytest.raises(CheckpointError, match=r"config.json: 'edgelm' is \[1\]; it must be an object"):
        HuggingFaceCheckpoint(tmp_path)


def test_a_tied_head_that_is_stored_all_the_same_must_equal_the_embedding(
    tmp_path: Path, save_llama: SaveLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    sizes, read = [], HuggingFaceCheckpoint._read

    def noted(checkpoint: HuggingFaceCheckpoint, source: str, which: slice | None = None) -> np.ndarray:
        found = read(checkpoint, source, which)
        sizes.append(found.size)
        return found

    monkeypatch.setattr("edgelm_export.sources.huggingface._PORTION_VALUES", 1000)
    monkeypatch.setattr(HuggingFaceCheckpoint, "_read", noted)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" not in HuggingFaceCheckpoint(tmp_path).config.tensor_shapes()
    assert max(sizes) <= 1000  # both as a whole would be two gigabytes of many a model
    tensors["lm_head.weight"][3, 5] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"ties the head .* but lm_head.weight is another tensor"):
        HuggingFaceCheckpoint(tmp_path)


def test_rotary_tables_of_older_files_are_passed_over_and_unknown_tensors_are_not(
    tmp_path: Path, save_llama: SaveLlama
) -> None:
    save_llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    HuggingFaceCheckpoint(tmp_path)
    tensors["model.layers.1.mlp.router.weight"] = torch.ones(8)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: model.norm.weight; unknown: model.layers.1.mlp.router.weight"):
        HuggingFaceCheckpoint(tmp_path)


def test_a_tensor_of_another_type_is_refused_by_name(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"not supported: model.norm.weight \(F8_E4M3\). Supported: F32, F16, BF16"
    ):
        HuggingFaceCheckpoint(tmp_path)


def test_settings_that_are_not_supported_are_refused(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path)
    change_json(tmp_path / "config.json", hidden_act="mish")
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}/config.json: hidden_act 'mish' is not"):
        HuggingFaceCheckpoint(tmp_path)
    change_json(tmp_path / "config.json", hidden_act="silu", num_key_value_heads=3)
    with pytest.raises(CheckpointError, match=r"config.json: num_attention_heads \(4\) is not a multiple"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 500, -1])
def test_a_truncated_weight_file_is_refused_by_name(tmp_path: Path, save_llama: SaveLlama, length: int) -> None:
    save_llama(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is not a whole safetensors file: .* Download it again"
    ):
        HuggingFaceCheckpoint(tmp_path)


def test_a_weight_file_that_breaks_after_it_was_opened_is_refused_by_name(
    tmp_path: Path, save_llama: SaveLlama
) -> None:
    save_llama(tmp_path)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        checkpoint.tensor("model.norm.weight")


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config.json cannot be read as JSON"),
        ("[" * 100_000, r"config.json cannot be read as JSON"),
        ("[]", r"config.json holds a list; it must be a JSON object"),
        ("\udcff", r"config.json cannot be read"),
    ],
)
def test_a_broken_config_is_refused_by_name(tmp_path: Path, save_llama: SaveLlama, content: str, message: str) -> None:
    save_llama(tmp_path)
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b.safetensors"])
def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path: Path, save_llama: SaveLlama, name: str) -> None:
    save_llama(tmp_path / "model", max_shard_size="100KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    with edited_json(index) as values:
        values["weight_map"]["model.norm.weight"] = name
    with pytest.raises(CheckpointError, match="only plain file names inside the folder are allowed"):
        HuggingFaceCheckpoint(tmp_path / "model")


def test_an_index_without_its_map_or_at_odds_with_its_files_is_refused(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    with edited_json(index) as values:
        shard = values["weight_map"].pop("model.norm.weight")
    with pytest.raises(CheckpointError, match=f"{shard} and .*index.json disagree about the tensors model.norm.weight"):
        HuggingFaceCheckpoint(tmp_path)
    index.write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(CheckpointError, match="has no weight_map of tensor names to file names"):
        HuggingFaceCheckpoint(tmp_path)


def test_all_missing_parts_of_a_sharded_folder_are_named_at_once(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path, max_shard_size="20KB")
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    for number, name in enumerate(shards[1:8], 1):
        (tmp_path / name).unlink()
        listed = ", ".join(shards[1 : min(number, 5) + 1]) + (f" and {number - 5} more" if number > 5 else "")
        words = f"lacks {number} of the {len(shards)} files that model.safetensors.index.json lists: {listed}."
        with pytest.raises(CheckpointError, match=re.escape(f"{words} Download them again.")):
            HuggingFaceCheckpoint(tmp_path)


def test_a_link_out_of_the_folder_is_refused_except_in_the_hubs_cache(tmp_path: Path, save_llama: SaveLlama) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    save_llama(snapshot)
    blob = tmp_path / "models--org--tiny" / "blobs" / "123"
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    HuggingFaceCheckpoint(snapshot)
    elsewhere = blob.rename(tmp_path / "elsewhere")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=r"is a link to .*elsewhere, outside the folder"):
        HuggingFaceCheckpoint(snapshot)


def test_text_files_are_passed_on_with_the_chat_template_in_a_file_of_its_own(
    tmp_path: Path, save_llama: SaveLlama
) -> None:
    save_llama(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    as_a_file = dict(HuggingFaceCheckpoint(tmp_path).text_files)
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    assert as_a_file.keys() == names
    assert as_a_file["tokenizer.json"] == (tmp_path / "tokenizer.json").read_text(encoding="utf-8")

    (tmp_path / "chat_template.jinja").unlink()
    change_json(tmp_path / "tokenizer_config.json", chat_template=template)
    inside = HuggingFaceCheckpoint(tmp_path).text_files
    assert inside["chat_template.jinja"] == template
    assert "chat_template" not in json.loads(inside["tokenizer_config.json"])

    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": template}]
    change_json(tmp_path / "tokenizer_config.json", chat_template=named)
    several = HuggingFaceCheckpoint(tmp_path).text_files
    assert several["chat_template.jinja"] == template_of({"default": template, "tool_use": "T"})
    assert json.loads(several["tokenizer_config.json"])["chat_template"] == named


@pytest.mark.parametrize("is_listed", [True, False])
def test_the_tokens_that_older_folders_name_in_a_file_of_their_own_are_those_of_transformers(
    tmp_path: Path, save_llama: SaveLlama, is_listed: bool
) -> None:
    save_llama(tmp_path, eos_token_id=0)
    change_json(tmp_path / "generation_config.json", eos_token_id=0)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}")
    listed = {"added_tokens_decoder": {"1": {"content": "<|im_start|>"}}} if is_listed else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|pad|>", **listed}))
    older = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "additional_special_tokens": []}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
    import_checkpoint(tmp_path, tmp_path / "imported")
    template = ChatTemplate.load(tmp_path / "imported")
    assert template is not None
    messages = [{"role": "user", "content": "Hi"}]
    for folder in (tmp_path, tmp_path / "imported"):
        expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
        assert template.render(messages) == expected == ("|<|pad|>" if is_listed else "<|im_start|>|<|im_end|>")
    assert HuggingFaceCheckpoint(tmp_path).config.eos_token_ids == ((0,) if is_listed else (0, 2))


def test_tokens_that_the_author_never_wants_are_not_generated(tmp_path: Path, save_llama: SaveLlama) -> None:
    model = save_llama(tmp_path / "hf")
    prompt = [5, 9, 60, 31]
    first = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    never = sorted({*first[:2], 7, 99_999})  # the last is no token of the model
    change_json(tmp_path / "hf/generation_config.json", suppress_tokens=never)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    wanted = again.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert wanted != first
    export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "fp32")
    loaded = edgelm.load(tmp_path / "package")
    given = loaded.generate(prompt, loaded.generation_config.replace(max_new_tokens=8))
    assert list(given.token_ids) == wanted


def test_settings_of_answers_that_are_not_taken_are_named(tmp_path: Path, save_llama: SaveLlama) -> None:
    """As BART's for summaries has them, but those that change nothing."""
    save_llama(tmp_path)
    settings = {"min_length": 56, "no_repeat_ngram_size": 3, "num_beams": 4, "length_penalty": 2.0, "min_new_tokens": 9}
    change_json(tmp_path / "generation_config.json", **settings, bad_words_ids=[[5]], encoder_repetition_penalty=None)
    assert HuggingFaceCheckpoint(tmp_path).notes == (
        "Of generation_config.json, edgelm does not do min_length = 56, bad_words_ids = [[5]].",
        "Its generation_config.json asks for num_beams = 4, length_penalty = 2.0: here each request asks for its "
        "beams.",
    )


def test_a_folder_without_a_tokenizer_says_how_to_make_one(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read as JSON"):
        _ = HuggingFaceCheckpoint(tmp_path).text_files
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"no tokenizer.model, no tekken.json, no tiktoken.model, and no vocab.json with merges.txt; .*save_pretr",
    ):
        _ = HuggingFaceCheckpoint(tmp_path).text_files
