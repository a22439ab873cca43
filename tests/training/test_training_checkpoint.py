"""Checkpoint folders in PyTorch: what is written is what is read, by us and by transformers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_features import GEMMA4_FEATURES, STREAMS
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from edgelm.config import SECTION, ModelConfig
from edgelm.errors import CheckpointError, ConfigError
from edgelm.rope_scaling import RopeScaling
from edgelm_training.checkpoint import (
    check_is_checkpoint,
    hf_config,
    load_checkpoint,
    save_checkpoint,
    weights_sha256,
)
from edgelm_training.model import Transformer

LLAMAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied, with biases": {
        "tie_word_embeddings": True,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
    },
    "of another name": {"model_type": "smollm", "hidden_act": "gelu_pytorch_tanh", "norm_eps": 1e-4},
    "llama3": {"rope_scaling": RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=32)},
    "yarn": {"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)},
    "linear": {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0), "rope_theta": 500.0},
}
QWENS: dict[str, dict[str, Any]] = {
    "qwen2": {"attention_bias": True, "model_type": "qwen2"},
    "qwen3": {"qk_norm": True, "num_attention_heads": 10, "tie_word_embeddings": True},
    "qwen3, with biases": {"qk_norm": True, "attention_bias": True, "attention_output_bias": True},
}
OLMO2 = {"norm_placement": "post", "qk_norm": True, "qk_norm_scope": "projection"}
GEMMA = {"norm": "rms_offset", "norm_placement": "both", "embedding_multiplier": 24**0.5, "attention_multiplier": 0.25}
WINDOWS = {"sliding_window": 6, "layer_types": ("full_attention", "sliding_attention")}
TWO_ROTATIONS = WINDOWS | {"rope_local_theta": 100.0}
# transformers' model_type -> features.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6, "num_attention_heads": 10},
    "qwen2": {"attention_bias": True, "sliding_window": 6, "layer_types": ("sliding_attention", "full_attention")},
    "qwen3": {"qk_norm": True, "sliding_window": 6},
    "smollm3": {"layers_without_rope": (0,), "head_dim": 6, "mlp_bias": True},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "granite_swa": TWO_ROTATIONS
    | {"attention_sinks": True, "residual_multiplier": 0.5, "head_dim": 6, "layers_without_rope": (0,)},
    "olmo2": OLMO2,
    "exaone4": WINDOWS | {"norm_placement": "post", "qk_norm": True, "layers_without_rope": (0,)},
    "arcee": {"mlp_gated": False, "hidden_act": "relu2", "mlp_bias": True},
    "gemma": {"norm": "rms_offset", "embedding_multiplier": 24**0.5},
    "olmo3": OLMO2
    | TWO_ROTATIONS
    | {"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)},
    "gemma2": GEMMA
    | {
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 6,
        "layer_types": ("sliding_attention", "full_attention"),
    },
    "gemma3_text": GEMMA
    | TWO_ROTATIONS
    | {"qk_norm": True, "rope_scaling": RopeScaling(rope_type="linear", factor=8.0)},
    "gemma3n_text": STREAMS
    | TWO_ROTATIONS
    | {
        "embedding_multiplier": 24**0.5,
        "attention_multiplier": 1.0,
        "qk_norm": True,
        "v_norm": True,
        "final_logit_softcapping": 3.0,
        "num_hidden_layers": 3,
        "num_kv_shared_layers": 1,
        "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
        "activation_sparsity_pattern": (0.9, 0.0, 0.5),
        "vocab_size_per_layer_input": None,
    },
    "gemma4_text": GEMMA4_FEATURES | {"embedding_multiplier": 24**0.5},
    "stablelm": {"norm": "layer", "head_dim": 6, "attention_bias": True, "partial_rotary_factor": 0.67},
    "stablelm, in parallel": {
        "norm": "layer",
        "head_dim": 6,
        "norm_placement": "shared",
        "parallel_residual": True,
    },
    "nemotron": {
        "norm": "layer_offset",
        "mlp_gated": False,
        "hidden_act": "relu2",
        "partial_rotary_factor": 0.6,
        "attention_bias": True,
        "attention_output_bias": True,
    },
    "olmo": {"norm": "layer_plain"},
    "jais2": {"norm": "layer", "mlp_gated": False, "hidden_act": "relu2", "mlp_bias": True, "head_dim": 6},
    "bitnet": {"sub_norms": True, "head_dim": 6, "hidden_act": "relu2"},
    "seed_oss": {"attention_bias": True, "mlp_bias": True},
    "seed_oss, a bias of o alone": {"attention_output_bias": True},
    "seed_oss, heads that do not divide the hidden size": {
        "num_attention_heads": 10,
        "attention_bias": True,
        "attention_output_bias": True,
    },
    "llama, dynamic rope": {
        "rope_scaling": RopeScaling(rope_type="dynamic", factor=2.0, original_max_position_embeddings=100)
    },
    "llama, longrope": {
        "rope_scaling": RopeScaling(
            rope_type="longrope",
            factor=2.0,
            original_max_position_embeddings=8,
            short_factor=(1.0, 1.5, 2.0, 2.5, 3.0),
            long_factor=(1.0, 2.0, 3.0, 4.0, 5.0),
        )
    },
}
SIGMOIDS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "scoring_func": "sigmoid",
    "expert_choice_bias": True, "shared_expert_intermediate_size": 24, "routed_scaling_factor": 1.5,
}  # fmt: skip
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    "olmoe": {
        "qk_norm": True, "qk_norm_scope": "projection", "head_dim": 6, "num_experts": 4, "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "flex_olmo": OLMO2
    | {"head_dim": 6, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "mellum": TWO_ROTATIONS
    | {
        "qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
        "rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    },
    "glm4_moe": SIGMOIDS | {
        "qk_norm": True, "num_hidden_layers": 3, "layers_without_experts": (0,), "partial_rotary_factor": 0.6,
        "attention_bias": True, "norm_topk_prob": False,
    },
    "dots1": SIGMOIDS | {
        "qk_norm": True, "sliding_window": 6, "layer_types": ("full_attention", "sliding_attention"),
        "attention_bias": True, "attention_output_bias": True,
    },
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "attention sinks, query and key norms": {"attention_sinks": True, "qk_norm": True},
    "experts without query and key norms": {"num_experts": 3, "num_experts_per_tok": 1, "router_bias": True},
    "layer norm": {"norm": "layer"},
    "learned positions": {"position": "learned"},
    "plain feed-forward, query and key norms": {"mlp_gated": False, "qk_norm": True},
    "query and key norms with biases of q, k and v alone": {"qk_norm": True, "attention_bias": True},
    "query and key norms with biases of the feed-forward": {"qk_norm": True, "mlp_bias": True},
    "a bias of the head": {"lm_head_bias": True},
    "norms without weights": {"norm": "rms_plain"},
    "norms of 1 + weight alone": {"norm": "rms_offset"},
    "attention and feed-forward in parallel": {"parallel_residual": True},
    "a soft-cap alone": {"final_logit_softcapping": 3.0},
    "one norm in parallel, of another kind": {"parallel_residual": True, "norm_placement": "shared"},
}


@pytest.fixture
def model(tiny_config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(tiny_config)


@pytest.fixture
def saved(model: Transformer, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, folder)
    return folder


def ids_of(config: ModelConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (1, 90), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LLAMAS | QWENS | OTHERS)
def test_a_saved_model_loads_with_the_same_config_and_weights(
    name: str, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, **(LLAMAS | QWENS | OTHERS)[name])
    model = Transformer(config)
    save_checkpoint(model, tmp_path / "checkpoint")

    loaded = load_checkpoint(tmp_path / "checkpoint")

    assert loaded.config == config
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(ids_of(config)), model(ids_of(config)))


@pytest.mark.parametrize("name", LLAMAS | QWENS | FAMILIES | EXPERTS)
def test_transformers_loads_a_family_that_it_knows_as_it_is(
    name: str, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, **(LLAMAS | QWENS | FAMILIES | EXPERTS)[name])
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    save_checkpoint(model, tmp_path / "checkpoint")

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")

    assert theirs.config.model_type == ("llama" if name in LLAMAS else name.partition(",")[0])
    assert theirs.generation_config.eos_token_id == 2
    theirs.save_pretrained(tmp_path / "again")
    assert ModelConfig.load(tmp_path / "again") == config
    with torch.no_grad():
        expected, logits = theirs(ids_of(config)).logits, model(ids_of(config))
    # float32 on both sides, summed in another order. Measured: 7e-6 on logits of up to 6.7.
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", LLAMAS | QWENS | FAMILIES)
def test_gradients_are_those_of_transformers(name: str, tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, **(LLAMAS | QWENS | FAMILIES)[name])
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf_config(config)))
    theirs.load_state_dict(model.state_dict(), strict=False)  # a tied head is there once more
    ids_BT = torch.randint(config.vocab_size, (3, 60), generator=torch.Generator().manual_seed(1))

    expected = theirs(ids_BT, labels=ids_BT).loss
    loss = torch.nn.functional.cross_entropy(model(ids_BT)[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
    expected.backward()
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for parameter_name, parameter in model.named_parameters():
        difference = (parameter.grad - their_gradients[parameter_name]).norm() / their_gradients[parameter_name].norm()
        assert difference < 1e-4, parameter_name  # float32 sums in another order; measured: 3.7e-6


@pytest.mark.parametrize("name", EXPERTS)
def test_gradients_of_experts_are_those_of_transformers(name: str, tiny_config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Transformer(replace(tiny_config, **EXPERTS[name]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    save_checkpoint(model, tmp_path / "checkpoint")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    ids_BT = torch.randint(model.config.vocab_size, (3, 60), generator=torch.Generator().manual_seed(1))

    theirs(ids_BT, labels=ids_BT).loss.backward()
    torch.nn.functional.cross_entropy(model(ids_BT)[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()).backward()

    for their_name, parameter in theirs.named_parameters():
        module = model.get_submodule(their_name.rpartition(".")[0])
        if their_name.endswith("experts.gate_up_proj"):
            ours = torch.stack([torch.cat([e.gate_proj.weight.grad, e.up_proj.weight.grad]) for e in module])
        elif their_name.endswith("experts.down_proj"):
            ours = torch.stack([expert.down_proj.weight.grad for expert in module])
        else:
            ours = module.get_parameter(their_name.rpartition(".")[2]).grad
        assert (ours - parameter.grad).norm() / parameter.grad.norm() < 1e-4, their_name


@pytest.mark.parametrize("name", OTHERS)
def test_transformers_refuses_what_it_has_no_model_for(name: str, tiny_config: ModelConfig, tmp_path: Path) -> None:
    save_checkpoint(Transformer(replace(tiny_config, **OTHERS[name])), tmp_path / "checkpoint")

    with pytest.raises(ValueError, match="edgelm"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")


@pytest.mark.parametrize(("ends", "written"), [((), None), ((2,), 2), ((2, 5), [2, 5])])
def test_end_tokens_are_written_as_transformers_reads_them(
    ends: tuple[int, ...], written: object, tiny_config: ModelConfig
) -> None:
    assert hf_config(replace(tiny_config, eos_token_ids=ends))["eos_token_id"] == written


def test_the_folder_holds_config_weights_and_generation_config(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert json.loads((saved / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": 2}
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_shards_are_read_through_their_index(model: Transformer, saved: Path) -> None:
    shard(saved)

    loaded = load_checkpoint(saved)

    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def shard(folder: Path, parts: int = 2) -> None:
    """Split model.safetensors into some files and an index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((list(state)[part::parts] for part in range(parts)), start=1):
        file = f"model-{number:05d}-of-{parts:05d}.safetensors"
        save_file({name: state[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_the_hash_of_weights_is_that_of_their_file_or_of_their_shards_hashes(saved: Path) -> None:
    assert weights_sha256(saved) == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    shard(saved, parts=7)  # so many that no set has them in order by chance
    parts = sorted(saved.glob("model-*.safetensors"))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]
    assert weights_sha256(saved) == hashlib.sha256("".join(hashes).encode()).hexdigest()
    (saved / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.safetensors: No such file.* Copy or download it"):
        weights_sha256(saved)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_load_as_float32_whatever_is_stored(stored: torch.dtype, model: Transformer, tmp_path: Path) -> None:
    save_checkpoint(model.to(stored), tmp_path / "checkpoint")

    loaded = load_checkpoint(tmp_path / "checkpoint")

    assert {tensor.dtype for tensor in [*loaded.parameters(), *loaded.buffers()]} == {torch.float32}
    assert torch.equal(loaded.state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"].float())
    assert loaded(ids_of(model.config)).dtype == torch.float32


def test_every_tensor_that_does_not_fit_is_listed(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    del state["model.layers.0.mlp.up_proj.weight"], state["model.norm.weight"]
    state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(3, 2)
    state["lm_head.weight"] = state["lm_head.weight"][:-1].clone()
    state["model.layers.1.input_layernorm.weight"] = torch.zeros(24, dtype=torch.int8)
    save_file(state, saved / "model.safetensors")

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)

    assert str(caught.value).splitlines() == [
        f"The tensors in {saved} do not fit its config.json:",
        "  missing: model.layers.0.mlp.up_proj.weight [40, 24]",
        "  missing: model.norm.weight [24]",
        "  mis-shaped: lm_head.weight is [60, 24], the config says [61, 24]",
        "  stored as I8, which is none of F32, F16, BF16: model.layers.1.input_layernorm.weight",
        "  unknown: model.layers.7.mlp.up_proj.weight [3, 2]",
    ]


def test_a_missing_or_broken_weights_file_is_an_error(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.safetensors: .*Copy or download it again\."):
        load_checkpoint(saved)

    weights.unlink()
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.safetensors: .*No such file"):
        load_checkpoint(saved)


def test_all_missing_parts_of_a_sharded_checkpoint_are_named_at_once(saved: Path) -> None:
    shard(saved)
    names = sorted(path.name for path in saved.glob("model-*.safetensors"))
    for name in names:
        (saved / name).unlink()

    with pytest.raises(CheckpointError, match=rf"lacks 2 of the 2 files .* {names[0]}, {names[1]}\. Copy or download"):
        load_checkpoint(saved)

    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "x" * 999}}))
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 1 files .*: x{100}\. Copy or download them again\."):
        load_checkpoint(saved)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}', "[" * 100_000, "[" + "1," * 150_000]
)
def test_a_broken_index_is_an_error(text: str, saved: Path) -> None:
    (saved / "model.safetensors.index.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"index\.json does not list the weight files"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", ""])
def test_an_index_reaches_no_file_outside_the_folder(name: str, saved: Path) -> None:
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))

    with pytest.raises(CheckpointError, match="which is not a plain file name"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    {
        "package": (("edgelm.json", "config.json"), r"is a package, .*: edgelm import .* -o checkpoint/"),
        "adapter": (("adapter_config.json",), r"holds an adapter, .*: edgelm merge .* -o merged/"),
        "run": (("config.toml", "checkpoints/step-00000001/config.json"), r"is the folder of a run\. .*latest"),
        "GGUF": (("model.gguf",), r"is no checkpoint folder\. From a GGUF file, .*: edgelm import .* -o checkpoint/"),
        "nothing": ((), r"is no checkpoint folder: there is no such folder\. .* a model of the library"),
    }.values(),
    ids=["package", "adapter", "run", "GGUF", "nothing"],
)
def test_what_is_no_checkpoint_says_how_to_come_to_one(content: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in content:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")

    with pytest.raises(CheckpointError, match=message):
        check_is_checkpoint(folder)


def test_a_folder_without_our_section_is_an_error(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    del values[SECTION]
    (saved / "config.json").write_text(json.dumps(values))

    with pytest.raises(ConfigError, match="has no 'edgelm' section"):
        load_checkpoint(saved)


def test_text_files_come_along(model: Transformer, saved: Path, tmp_path: Path) -> None:
    texts = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{ }",
        "chat_template.jinja": "{{ bos_token }}é\r\n",
        "generation_config.json": '{"eos_token_id": 9}',
    }
    source = tmp_path / "source"
    source.mkdir()
    for name, text in (texts | {"README.md": "no part of a checkpoint"}).items():
        (source / name).write_bytes(text.encode())

    save_checkpoint(model, saved, text_files_from=source)

    assert {name: (saved / name).read_bytes().decode() for name in texts} == texts
    assert not (saved / "README.md").exists()


def test_a_checkpoint_replaces_the_one_whose_text_files_it_takes(
    model: Transformer, saved: Path, tiny_config: ModelConfig
) -> None:
    (saved / "tokenizer.json").write_text("{}")
    loaded = load_checkpoint(saved)
    with torch.no_grad():
        loaded.lm_head.weight.add_(1.0)

    save_checkpoint(loaded, saved, text_files_from=saved)

    assert (saved / "tokenizer.json").read_text() == "{}"
    again = load_checkpoint(saved).state_dict()
    assert torch.equal(again["lm_head.weight"], model.state_dict()["lm_head.weight"] + 1.0)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_a_source_without_a_tokenizer_is_an_error(model: Transformer, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json to copy\."):
        save_checkpoint(model, tmp_path / "new", text_files_from=saved)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("config", [None, "{", "[1]", '{"model_type": "llama"}'])
def test_a_folder_that_is_not_a_checkpoint_of_ours_is_never_replaced(
    config: str | None, model: Transformer, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    if config is not None:
        (tmp_path / "config.json").write_text(config)

    with pytest.raises(CheckpointError, match="exists and is not a checkpoint folder of edgelm"):
        save_checkpoint(model, tmp_path)
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint folder of edgelm"):
        save_checkpoint(model, tmp_path / "thesis.txt")

    assert (tmp_path / "thesis.txt").read_text() == "ten years"


POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="limits on file sizes and SIGKILL are POSIX's")


@POSIX_ONLY
def test_a_full_disk_is_an_error_and_leaves_the_old_checkpoint(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    # A limit on the size of a file stands in for a full disk; it cannot be lifted again, hence the process.
    program = f"""
import resource, signal
from edgelm_training.checkpoint import load_checkpoint, save_checkpoint
from edgelm.errors import CheckpointError
model = load_checkpoint({str(saved)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_checkpoint(model, {str(saved)!r})
except CheckpointError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert run.stdout.startswith(f"Cannot write {saved}: ")
    assert run.stdout.strip().endswith("What stood there is as it was.")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


@POSIX_ONLY
def test_a_save_that_is_killed_leaves_the_old_checkpoint(model: Transformer, saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    program = f"""
import os, signal
import edgelm_training.checkpoint as checkpoint
model = checkpoint.load_checkpoint({str(saved)!r})
save_file = checkpoint.save_file
def killed(*args, **kwargs):
    save_file(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = killed
checkpoint.save_checkpoint(model, {str(saved)!r})
"""
    run = subprocess.run([sys.executable, "-c", program], check=False)

    assert run.returncode == -signal.SIGKILL
    assert (saved / "model.safetensors").read_bytes() == before
    save_checkpoint(model, saved)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]
