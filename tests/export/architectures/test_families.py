"""Each model family beside transformers: numpy, ONNX and PyTorch from its safetensors, exact tensors from GGUF."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from family_models import GPT_OSS, MODELS
from gguf_models import GGUF_MODELS, GGUF_PAIRS
from gradient_check import check_gradients, gradients_of
from json_files import edited_json
from numpy.typing import NDArray
from pair_models import MODELS as PAIR_MODELS
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from unchecked_export import export_unchecked

import edgelm
from edgelm.config import ModelConfig
from edgelm.embedding import embed
from edgelm.errors import CheckpointError
from edgelm.memory.kv_batch import KVBatch
from edgelm.runtime.session import DecoderSession
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.importer import import_checkpoint
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from edgelm_training.model import Transformer

SaveModel = Callable[..., PreTrainedModel]
WriteGGUF = Callable[..., Path]

# Float32 sums in another order. Measured, the largest of all families: 4.6e-5, for Gemma 4.
TOLERANCE = 1e-4


def theirs(model: PreTrainedModel, ids: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def random_ids() -> list[int]:
    return np.random.default_rng(0).integers(0, 320, 150).tolist()


# The rows of MODELS, and those of GGUF_MODELS that are none of them; and for each of the latter its row here.
ROWS = dict(MODELS)
FILES = []
for _name, (_model_type, _, _changes) in GGUF_MODELS.items():
    _same = (row for row, values in ROWS.items() if values == (_model_type, _changes))
    _row = next(_same, f"{_name}, as stored")
    ROWS[_row] = (_model_type, _changes)
    FILES.append(pytest.param(_name, _row, id=_name))


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model of transformers and its folder; its logits of `random_ids`, that folder imported, and our model of it."""

    name: str
    model_type: str
    model: PreTrainedModel
    folder: Path

    @cached_property
    def logits_TV(self) -> NDArray[np.float32]:  # noqa: N802  (a shape)
        return theirs(self.model, random_ids())

    @cached_property
    def imported(self) -> Path:
        import_checkpoint(self.folder, self.folder.with_name("ours"))
        return self.folder.with_name("ours")

    @cached_property
    def ours(self) -> Transformer:
        return load_checkpoint(self.imported)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, save_model: SaveModel, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The family that a test is parametrized with; pytest runs all tests of one after each other, and makes it once."""
    model_type, changes = ROWS[request.param]
    folder = tmp_path_factory.mktemp("family") / "hf"
    model = save_model(model_type, folder, **changes)
    return Family(name=request.param, model_type=model_type, model=model, folder=folder)


def test_every_family_is_compared() -> None:
    pairs = {model_type for model_type, _ in PAIR_MODELS.values()}  # test_encoder_decoder.py
    parts = {"mllama_text_model", "cohere_compass_text"}  # test_text_part.py
    assert {model_type for model_type, _ in MODELS.values()} == set(ARCHITECTURES) - pairs - parts


def check_chunks_and_steps(session: DecoderSession, ids: list[int], expected_TV: NDArray[np.float32]) -> None:
    cache = session.new_cache()
    for start, end in ((0, 128), (128, 147), (147, 148), (148, 149), (149, 150)):
        logits_V = session.forward(ids[start:end], cache)[0]
        # LongRoPE turns a text of these 128 tokens as the whole, and transformers too: both are beyond its context.
        np.testing.assert_allclose(logits_V, expected_TV[end - 1], rtol=0, atol=TOLERANCE)


def check_a_batch(session: DecoderSession, ids: list[int], expected_TV: NDArray[np.float32]) -> None:
    """Rows of 148 and of 20 tokens, and the next token of each in one step."""
    batch = KVBatch(session.config)
    lengths = (148, 20)
    for length in lengths:
        row = batch.add()
        session.forward(ids[:length], row)
        batch.activate(row)
    logits_BV = session.forward_rows([ids[length] for length in lengths], batch)
    np.testing.assert_allclose(logits_BV, expected_TV[list(lengths)], rtol=0, atol=TOLERANCE)


# Their tensors have other names or another form in transformers, and no family there has their features and our names.
STORED_OTHERWISE = (
    "phi", "gpt2", "starcoder2", "gpt_neox", "nanochat", "mixtral", "gpt_oss", "lfm2", "lfm2_moe", "hunyuan_v1_dense",
    "granitemoe", "granitemoeshared", "ernie4_5_moe", "apertus", "apertus1p5_text",
    "cohere", "cohere2", "glm", "glm4", "bamba", "falcon_h1", "modernbert-decoder", "nemotron_h", "olmo_hybrid",
    "qwen2_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next",
    "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu",
    "afmoe", "exaone_moe", "hunyuan_v1_moe", "vaultgemma", "falcon", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "opt",
    "deepseek", "bailing_moe", "bailing_moe_v2", "phimoe", "granitemoe_swa", "lfm3", "hyperclovax", "llama4_text",
    "jamba", "laguna", "flint", "lara_mini", "bloom", "mpt", "xglm", "openai-gpt", "chatglm",
    "cohere2_moe", "persimmon", "sarvam_mla", "hy_v3", "minimax_m2",
)  # fmt: skip
NOT_IN_TRANSFORMERS = {
    name
    for name, (model_type, _) in MODELS.items()
    if model_type in STORED_OTHERWISE
    or name
    in (
        "phi3, longrope of a part of each head",
        "granitemoehybrid without rope, untied",
        "granitemoehybrid with experts",
        "gemma4_text with experts",
        "gemma4_text with experts, shared keys, features",
        "granitemoehybrid with Mamba",
        "stablelm in parallel, with norms of heads",
        "granitemoehybrid with Mamba, groups, experts and rope, untied",
    )
} - {
    "hy_v3",
    "glm, all of each head, without biases, tied",
    "falcon, one after the other, a key head for each query head, biases",
    "gpt_neox, one after the other, without biases",
    "hyperclovax without norms behind, biases",
    "starcoder2",
}


@pytest.mark.parametrize("family", MODELS, indirect=True)
def test_numpy_onnx_and_pytorch_give_the_logits_of_transformers(family: Family, tmp_path: Path) -> None:
    ids, expected_TV = random_ids(), family.logits_TV
    checkpoint = HuggingFaceCheckpoint(family.folder)
    assert checkpoint.config.model_type == family.model_type
    (logits_TV,) = reference_logits(checkpoint, [ids])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=TOLERANCE)

    export_unchecked(checkpoint, tmp_path / "package", "fp32")
    session = DecoderSession(tmp_path / "package", ModelConfig.load(tmp_path / "package"))
    logits_TV = session.forward(ids, session.new_cache(), all_logits=True)
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=TOLERANCE)
    check_chunks_and_steps(session, ids, expected_TV)
    if checkpoint.config.short_context is None:
        check_a_batch(session, ids, expected_TV)

    with torch.no_grad():
        logits_TV = family.ours(torch.tensor([ids]))[0].numpy()
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=TOLERANCE)
    written = json.loads((family.imported / "config.json").read_text())["model_type"]
    assert (written == "edgelm") == (family.name in NOT_IN_TRANSFORMERS), (
        "no row of hf_families.py has this config: add one, or name it in STORED_OTHERWISE"
    )


@pytest.mark.parametrize("family", sorted(MODELS.keys() - NOT_IN_TRANSFORMERS), indirect=True)
def test_an_imported_folder_loads_in_transformers_and_so_does_the_trained_one(family: Family, tmp_path: Path) -> None:
    ids, expected_TV = random_ids(), family.logits_TV
    # A Phi-3 comes back as the Llama, or the Mistral, that it is; an ERNIE, a GLM, a Helium, an EXAONE 3, an InternLM 2
    # as a Llama; a Granite 4 as a Granite 3, a MiniCPM as a Granite; a Seed-OSS, a MiMo and a Qwen 1 as a Qwen2; a
    # Sarvam and a Solar Open as a GLM-4.5; a Falcon, a GPT-NeoX and a StarCoder 2 whose parts are not parallel as a
    # Jais 2.
    another = (
        "phi3", "ernie4_5", "glm", "helium", "exaone", "falcon", "gpt_neox", "granitemoehybrid", "internlm2", "minicpm",
        "seed_oss", "starcoder2", "sarvam_moe", "mimo", "qwen", "hy_v3",
    )  # fmt: skip
    written = json.loads((family.imported / "config.json").read_text())["model_type"]
    assert written == family.model_type or family.model_type in another
    save_checkpoint(family.ours, tmp_path / "trained", text_files_from=family.imported)
    folders = [tmp_path / "trained"]  # which loads as a Mistral does
    if not is_as_transformers_wrote_it(family.imported, family.folder):
        folders.append(family.imported)
    for folder in folders:
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        np.testing.assert_allclose(theirs(loaded, ids), expected_TV, rtol=0, atol=TOLERANCE)
    loaded.save_pretrained(tmp_path / "again")  # which keeps our section, and says nothing else beside it
    again, ours = (HuggingFaceCheckpoint(folder).config for folder in (tmp_path / "again", family.imported))
    assert again == ours == ModelConfig.load(tmp_path / "again")


def is_as_transformers_wrote_it(folder: Path, original: Path) -> bool:
    """Whether both have the same tensors, and the same config.json but for our section."""
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, original)]
    configs[0].pop("edgelm")
    found, expected = (load_file(path / "model.safetensors") for path in (folder, original))
    return (
        configs[0] == configs[1]
        and found.keys() == expected.keys()
        and all(np.array_equal(found[name], tensor) for name, tensor in expected.items())
    )


@pytest.mark.parametrize("family", ["phi"], indirect=True)
def test_transformers_refuses_an_imported_folder_of_a_family_that_it_stores_otherwise(family: Family) -> None:
    with pytest.raises(ValueError, match="model type `edgelm`"):
        AutoModelForCausalLM.from_pretrained(family.imported)


def test_a_dynamic_scaling_gives_the_logits_of_transformers_in_each_decoded_step(
    tmp_path: Path, save_model: SaveModel
) -> None:
    """A prompt beyond the original context is another thing there: all of it turns as its last token (rope.py)."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    model = save_model("llama", tmp_path / "hf", rope_parameters=rope, max_position_embeddings=64)
    export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "fp32")
    session = DecoderSession(tmp_path / "package", ModelConfig.load(tmp_path / "package"))
    ids, cache = random_ids(), session.new_cache()
    np.testing.assert_allclose(session.forward(ids[:60], cache)[0], theirs(model, ids[:60])[-1], rtol=0, atol=TOLERANCE)
    their_cache = None
    with torch.no_grad():
        for start, end in [(0, 60), *((i, i + 1) for i in range(60, 90))]:
            output = model(torch.tensor([ids[start:end]]), cache=their_cache, use_cache=True)
            their_cache = output.cache
            if start >= 60:
                logits_V = session.forward(ids[start:end], cache)[0]
                np.testing.assert_allclose(logits_V, output.logits[0, -1].numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("length", [180, 300])
def test_a_text_is_scored_and_embedded_as_one_of_its_length(length: int, tmp_path: Path, save_model: SaveModel) -> None:
    """LongRoPE turns each position by whether the whole text, not the chunk, is beyond the original context."""
    changes = MODELS["phi3, longrope"][1] | {"original_max_position_embeddings": 200}
    model = save_model("phi3", tmp_path / "hf", **changes)
    export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "fp32")
    loaded, ids = edgelm.load(tmp_path / "package"), (random_ids() * 2)[:length]
    with torch.no_grad():
        hidden_TD = model.base_model(torch.tensor([ids])).last_hidden_state[0].numpy()
    logprobs_TV = torch.log_softmax(torch.tensor(theirs(model, ids)), -1)
    expected = [float(logprobs_TV[i, id_]) for i, id_ in enumerate(ids[1:])]
    np.testing.assert_allclose([token.logprob for token in loaded.score(ids).tokens], expected, rtol=0, atol=TOLERANCE)
    mean_D = embed(loaded, ids, "mean", normalize=False)
    np.testing.assert_allclose(mean_D, hidden_TD.mean(axis=0), rtol=0, atol=TOLERANCE)


# Rows in another order, rows of one tensor, columns in another order, Mamba, experts, a matrix that is turned.
_IN_OTHER_TYPES = ("mistral", "phi3", "qwen3_5", "falcon_h1", "gemma4_text with experts", "deepseek_v2")
_FLOATS = ("embed_positions", ".altup.", ".mamba.A_log", ".mamba.x_proj", ".mamba.dt_proj")  # in the files of here


@pytest.mark.parametrize(("name", "family"), FILES, indirect=["family"], scope="module")
def test_a_gguf_file_has_the_config_and_the_tensors_of_the_folder(
    name: str, family: Family, tmp_path: Path, write_gguf: WriteGGUF
) -> None:
    folder, architecture = HuggingFaceCheckpoint(family.folder), GGUF_MODELS[name][1]
    for quantization in ("Q8_0", "F32", "Q4_0") if name in _IN_OTHER_TYPES else ("Q8_0",):
        path = write_gguf(tmp_path / f"{quantization}.gguf", family.model, quantization, architecture=architecture)
        with GGUFCheckpoint(path) as checkpoint:
            check_file(checkpoint, folder, architecture, gguf.GGMLQuantizationType[quantization])


def check_file(
    checkpoint: GGUFCheckpoint, folder: HuggingFaceCheckpoint, architecture: str, type_: gguf.GGMLQuantizationType
) -> None:
    is_called_llama = folder.config.model_type == "mistral" and architecture == "llama"
    other = {"model_type": "llama"} if is_called_llama else {}
    assert checkpoint.config.to_dict() == folder.config.to_dict() | other
    for tensor, shape in checkpoint.config.tensor_shapes().items():
        expected = folder.tensor(tensor)
        is_turned = architecture == "minicpm3" and "k_b_proj" in tensor  # the file has its columns in rows
        if len(shape) == 2 and not any(part in tensor for part in _FLOATS):
            written = np.ascontiguousarray(expected.T) if is_turned else expected
            rounded = gguf.quants.dequantize(gguf.quants.quantize(written, type_), type_)
            expected = rounded.T if is_turned else rounded
        # 1 + weight and -exp(weight) were rounded in the file: by half a unit in the last place of up to 4.
        # Measured: 1.5e-7.
        is_rounded = len(shape) == 1 and checkpoint.config.norm.endswith("_offset")
        tolerance = 1.6e-7 if is_rounded or tensor.endswith("A_log") else 0
        np.testing.assert_allclose(checkpoint.tensor(tensor), expected, rtol=0, atol=tolerance, err_msg=tensor)
        blocks = checkpoint.quantized_blocks(tensor)
        if blocks is not None:  # the rows of a part of a fused tensor, too
            values = (blocks.values * blocks.scales[..., None]).reshape(shape)
            np.testing.assert_array_equal(values, expected, err_msg=tensor)


# The file has the folder's config and tensors, and an imported folder of each family loads: so a few are enough here.
_IN_FULL = ("mistral", "gemma3_text", "qwen3_moe", "olmo3")


@pytest.mark.parametrize(
    ("name", "family"), [file for file in FILES if file.id in _IN_FULL], indirect=["family"], scope="module"
)
def test_an_imported_gguf_file_loads_in_transformers(
    name: str, family: Family, tmp_path: Path, write_gguf: WriteGGUF
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", family.model, architecture=GGUF_MODELS[name][1])
    import_checkpoint(path, tmp_path / "ours")
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(theirs(imported, random_ids()), family.logits_TV, rtol=0, atol=TOLERANCE)


needs_llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python")

# llama.cpp rounds YaRN's range to whole dimensions, which GPT-OSS does not ask for, and takes no OLMoE with fewer key
# heads than query heads; neither is a matter of the files.
_FOR_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "cohere with norms of heads": {"num_hidden_layers": 64},  # it knows them by their depth, Command R+'s
    "gpt_oss": {"rope_parameters": GPT_OSS["rope_parameters"] | {"truncate": True}},
    "olmoe": {"num_key_value_heads": 4},
    # It refuses files without experts, as MobileLLM-R1's are, and fails at those without a layer that does not turn.
    "llama4": {
        "num_local_experts": 1,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": [*["chunked_attention"] * 3, "full_attention"],
    },
    # It knows the sizes of the published ones alone, the first 20 layers of which have keys and values, and the first
    # 10 gates that are nothing.
    "gemma3n_text": {
        "num_hidden_layers": 22,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 256,
        "laurel_rank": 64,
        "layer_types": [*(["sliding_attention"] * 4 + ["full_attention"]) * 4, "sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
        "intermediate_size": 2048,
    },
}


# Its contexts are multiples of 256 tokens, so that it would take LongRoPE's factors for a longer text.
@needs_llama_cpp
@pytest.mark.parametrize(
    ("name", "family"), [file for file in FILES if file.id != "phi3, longrope"], indirect=["family"], scope="module"
)
def test_llama_cpp_gives_transformers_logits_for_the_files_of_these_tests(
    name: str, family: Family, tmp_path: Path, save_model: SaveModel, write_gguf: WriteGGUF
) -> None:
    """So the files are what its own converter would have written: the names, the orders of rows, the keys."""
    import llama_cpp

    model, (model_type, architecture, changes) = family.model, GGUF_MODELS[name]
    if name in _FOR_LLAMA_CPP:
        model = save_model(model_type, tmp_path / "hf", **changes | _FOR_LLAMA_CPP[name])
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture=architecture)
    ids = random_ids()[:30]
    options = {"logits_all": True, "n_threads": 1, "verbose": False, "flash_attn": False}
    llama = llama_cpp.Llama(
        str(path), n_ctx=64, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, **options
    )
    llama.eval(ids)
    # Its gelu is a table of 16 bits. Measured: 4.5e-2 for Gemma 4, whose scores are as large as its heads, 1.2e-2 for
    # Gemma 3, 5.3e-3 for the other families with gelu, 3.1e-5 for those without (Qwen2-VL: 1.6e-4); another order of
    # rows, or a key that is not read, gives 1. In Gemma 3n's 22 layers 9.5e-2, and 2.9e-2 where transformers is made to
    # look gelu up in that table, and to divide the gates' variance by one less than their number, as llama.cpp does.
    tolerance = {"gemma4": 0.1, "gemma3n": 0.2}.get(architecture, 0.03)
    np.testing.assert_allclose(llama.scores[: len(ids)], theirs(model, ids), rtol=0, atol=tolerance)
    llama.close()


@needs_llama_cpp
def test_a_factor_of_yarns_attention_is_read_as_llama_cpp_does(
    tmp_path: Path, save_model: SaveModel, write_gguf: WriteGGUF
) -> None:
    """As DeepSeek-R1-0528-Qwen3-8B has it, in its folder (vLLM reads it so) and in its GGUF files."""
    import llama_cpp

    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    model = save_model("qwen3", tmp_path / "hf", head_dim=16, rope_parameters=yarn)
    path = write_gguf(tmp_path / "tiny.gguf", model, metadata={"qwen3.rope.scaling.attn_factor": 0.5})
    with edited_json(tmp_path / "hf/config.json") as config:
        config["rope_parameters"]["attn_factor"] = 0.5
    ids = random_ids()[:30]
    llama = llama_cpp.Llama(
        str(path), n_ctx=64, type_k=0, type_v=0, logits_all=True, n_threads=1, verbose=False, flash_attn=False
    )
    llama.eval(ids)
    for checkpoint in (GGUFCheckpoint(path), HuggingFaceCheckpoint(tmp_path / "hf")):
        (logits_TV,) = reference_logits(checkpoint, [ids])
        np.testing.assert_allclose(logits_TV, llama.scores[: len(ids)], rtol=0, atol=TOLERANCE)
    llama.close()


def test_every_family_that_llama_cpp_knows_is_read_from_gguf_too() -> None:
    read = {architecture for _, architecture, _ in GGUF_MODELS.values()} | set(GGUF_PAIRS.values())
    rows = [row.gguf for row in ARCHITECTURES.values() if row.gguf]
    assert read == {name for gguf in rows for name in (gguf.architecture, *gguf.also_called)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metadata": {"qwen3.expert_count": 8}},
            "tiny.gguf: .*features that are not supported: qwen3.expert_count = 8",
        ),
        ({"extra": {"rope_freqs.weight": np.ones(8, np.float32)}}, "unknown: rope_freqs.weight"),
        ({"architecture": "qwen2"}, "missing: blk.0.attn_q.bias, .*; unknown: blk.0.attn_q_norm.weight"),
    ],
)
def test_a_gguf_file_of_another_model_is_refused_by_name(
    tmp_path: Path, save_model: SaveModel, write_gguf: WriteGGUF, changes: dict[str, Any], message: str
) -> None:
    model = save_model("qwen3", tmp_path / "hf", head_dim=16)
    with pytest.raises(CheckpointError, match=message):
        GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", model, **changes))


# PyTorch derives the gradients from what is computed, which is compared for every row: one of each family is enough.
_FIRST_OF_ITS_TYPE = {model_type: name for name, (model_type, _) in reversed(MODELS.items())}.values()


@pytest.mark.parametrize("family", sorted(_FIRST_OF_ITS_TYPE), indirect=True)
def test_gradients_are_those_of_transformers(family: Family) -> None:
    """A folder with the gradients in the place of the weights is read as any other: parts, orders and all."""
    model = family.model  # whose weights become the gradients: its logits are known, and no other test computes with it
    # transformers gives the embedding of a padding token no gradient.
    ids_BT = torch.tensor([[id_ for id_ in random_ids() if id_ != model.config.pad_token_id]])
    for logits_BTV in (model(ids_BT).logits, family.ours(ids_BT)):
        torch.nn.functional.cross_entropy(logits_BTV[0, :-1], ids_BT[0, 1:]).backward()
    check_gradients(*gradients_of(model, family.ours, family.folder))
