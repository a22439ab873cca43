"""What is fuzzed: for each kind of foreign file its seeds, its mutations, and the code that reads it."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from fuzz import byte_level_folders, gguf_families, http_bodies, packages, packed_folders, sentencepiece_models
from fuzz.mutations import mutate_bytes, mutate_json, mutate_template
from mlx_folder import pack_folder

from edgelm.architecture.quantization_recipe import read_recipe
from edgelm.config import ModelConfig
from edgelm.errors import EdgeLMError
from edgelm.files.safetensors_reader import parse_matrices
from edgelm.generation_config import GenerationConfig
from edgelm.memory.kv_cache import KVCache
from edgelm.package.adapter import AdapterManifest
from edgelm.package.manifest import Manifest
from edgelm.package.onnx_walk import walk_onnx
from edgelm.package.peft_format import in_pairs
from edgelm.runtime.adapter_graph import products_of
from edgelm.runtime.joined_planes import join_planes
from edgelm.testing import tiny_model_path
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.architectures import ARCHITECTURES, architecture_of
from edgelm_export.checkpoint_folder import read_json_object, read_text_files
from edgelm_export.gguf import GGUFFile
from edgelm_export.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.huggingface import HuggingFaceCheckpoint
from edgelm_training.pretrain_config import PretrainConfig
from edgelm_training.settings import read_settings

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a <wave>?"},
    {"role": "assistant", "content": "Water.", "calls": [{"name": "f", "arguments": {"x": 1}}]},
]
TEMPLATES = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{% macro turn(m, first=false) %}{{ m.role ~ m['content'] | trim }}"
    "{% if m.calls %}{{ m.calls | tojson }}{% endif %}"
    "{% endmacro %}{% set ns = namespace(n=0) %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}{{ turn(m) }}"
    "{% if loop.last and m.role in ['user', 'tool'] %}{{ '%s' | format(ns.n) }}{% endif %}{% endfor %}",
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of file. `prepare` makes seeds in a folder; `read` is given the folder with a mutant in `file`."""

    file: str
    prepare: Callable[[Path], Sequence[bytes]]
    mutate: Callable[[bytes, Random, Sequence[bytes]], bytes]
    read: Callable[[Path], None]
    count: int  # of mutants in the tests of each change; `make fuzz` has more
    long_count: int


def _tiny_package(folder: Path, *names: str) -> list[bytes]:
    shutil.copytree(tiny_model_path(), folder, dirs_exist_ok=True)
    return [(folder / name).read_bytes() for name in names]


def _gguf_seeds(folder: Path) -> list[bytes]:
    return [(write_gguf(folder / f"seed-{kind}.gguf", kind)).read_bytes() for kind in ("F32", "Q8_0")]


_SECOND_PART = "model-00002-of-00002.gguf"


def _second_part_seeds(folder: Path) -> list[bytes]:
    """Leave the first of two parts in the folder, and return second ones."""
    return [write_gguf(folder / "model.gguf", kind, split_max_tensors=6).read_bytes() for kind in ("Q8_0", "F32")]


def write_gguf(path: Path, kind: str, split_max_tensors: int = 0) -> Path:
    """Write a whole model of one layer, with a byte-level tokenizer of 300 tokens; return the last file of it."""
    import gguf

    spec = json.loads((tiny_model_path() / "tokenizer.json").read_text())
    vocabulary = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_max_tensors)
    writer.add_name("tiny")
    for field, value in (("context_length", 64), ("embedding_length", 32), ("block_count", 1), ("head_count", 2)):
        getattr(writer, f"add_{field}")(value)
    writer.add_head_count_kv(1)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * 3 + [1] * (len(vocabulary) - 3))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATES[0])
    rows = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}
    tensors = {f"blk.0.{name}.weight": np.ones((size, 32), np.float32) for name, size in rows.items()}
    tensors["token_embd.weight"] = np.ones((len(vocabulary), 32), np.float32)
    quantized = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        writer.add_tensor(name, gguf.quantize(tensor, quantized), raw_dtype=quantized)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.format_shard_names(path)[-1]


def _short_gguf_seeds(folder: Path) -> list[bytes]:
    import gguf

    seeds = []
    for version in (0, 1):
        writer = gguf.GGUFWriter(folder / f"short-{version}.gguf", "llama")
        writer.add_uint32("a.number", 7)
        writer.add_array("an.array", [1, 2, 3])
        writer.add_array("a.text.array", ["a", "bc"])
        writer.add_bool("a.bool", True)
        writer.add_float32("a.float", 0.5)
        writer.add_tensor("a", np.ones((2, 32), np.float32))
        writer.add_tensor("b", gguf.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0),
                          raw_dtype=gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        seeds.append((folder / f"short-{version}.gguf").read_bytes())
    return seeds


def _read_gguf(folder: Path) -> None:
    with GGUFFile.open(folder / "model.gguf") as file:
        for name in file.tensors:
            file.data(name)


def _read_gguf_checkpoint(folder: Path, file: str = "model.gguf") -> None:
    with GGUFCheckpoint(folder / file) as checkpoint:
        assert checkpoint.text_files
        assert checkpoint.source
        for name in checkpoint.config.tensor_shapes():
            checkpoint.tensor(name)
            checkpoint.quantized_blocks(name)


def _checkpoint_folder(folder: Path) -> Path:
    from make_tiny_model import CONFIG, make_checkpoint

    small = CONFIG.to_dict() | {"num_hidden_layers": 1, "vocab_size": 320, "intermediate_size": 32}
    return make_checkpoint(folder, ModelConfig.from_dict(small))


def _safetensors_seeds(folder: Path) -> list[bytes]:
    return [(_checkpoint_folder(folder) / "model.safetensors").read_bytes()]


def _mutate_safetensors(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.5:
        header = mutate_json(header.rstrip(), random, others)
        return len(header).to_bytes(8, "little") + header + rest
    whole = mutate_bytes(data[: 8 + length + 64], random, others)
    return whole + rest[64:]


def _read_adapter_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    in_pairs(parse_matrices(path.read_bytes(), path), path)


def _read_checkpoint(folder: Path) -> None:
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert all(text.encode() for text in checkpoint.text_files.values())
        for name in list(checkpoint.config.tensor_shapes())[:3]:
            checkpoint.tensor(name)


def _mlx_folder(folder: Path) -> dict[str, object]:
    """Pack a checkpoint folder as mlx-lm does, one module in other bits; return the values of its config.json."""
    own = {"model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32}}
    settings = {"bits": 4, "group_size": 32, "mode": "affine", **own}
    pack_folder(_checkpoint_folder(folder), settings, lambda name: 8 if "down_proj" in name else 4)
    values: dict[str, object] = json.loads((folder / "config.json").read_bytes())
    return values


def _mlx_config_seeds(folder: Path) -> list[bytes]:
    """Few settings beside those of the quantization, so that most mutations change that."""
    values = _mlx_folder(folder)
    return [json.dumps({key: values[key] for key in ("edgelm", "quantization")}).encode()]


def _mlx_weight_seeds(folder: Path) -> list[bytes]:
    _mlx_folder(folder)
    return [(folder / "model.safetensors").read_bytes()]


def _mutate_mlx_config(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    values = json.loads(data)
    try:
        values["quantization"] = json.loads(mutate_json(json.dumps(values["quantization"]).encode(), random, others))
    except (ValueError, RecursionError):  # its bytes were changed
        values["quantization_config"] = values.pop("quantization")
    return json.dumps(values).encode("utf-8", "surrogatepass")


def _read_mlx(folder: Path) -> None:
    with HuggingFaceCheckpoint(folder) as checkpoint:
        for name in checkpoint.config.tensor_shapes():
            checkpoint.tensor(name)
            checkpoint.quantized_blocks(name)


def _config_seeds(folder: Path) -> list[bytes]:
    """A config.json of Hugging Face's for the same tensors, one of a model that also reads images, and ours."""
    own = json.loads((_checkpoint_folder(folder) / "config.json").read_bytes())
    section = own["edgelm"]
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "hidden_act",
    )  # fmt: skip
    foreign = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "eos_token_id": [2]}
    foreign |= {name: section[name] for name in names}
    foreign["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    senses = {"model_type": "smolvlm", "text_config": foreign, "vision_config": {}, "eos_token_id": 2}
    return [json.dumps(values).encode() for values in (own, foreign, senses)]


def _read_text_files(folder: Path) -> None:
    for text in read_text_files(folder).values():
        text.encode()


def _read_sentencepiece(folder: Path) -> None:
    """Read a tokenizer.model as it is, as the source.spm of a Marian folder, and as classes number it anew."""
    copies = [folder / "marian" / "source.spm"]
    copies += [folder / class_ / "tokenizer.model" for class_ in sentencepiece_models.RENUMBERING]
    for path in copies:
        shutil.copy(folder / "tokenizer.model", path)
    _all_of(*(functools.partial(_read_text_files, path) for path in (folder, *(path.parent for path in copies))))


def _family_seeds(_folder: Path) -> list[bytes]:
    """A config.json of each family, as transformers has it by default, and with keys of its older versions."""
    from hub_models import HUB_MODELS
    from transformers import AutoConfig

    older = {
        "layer_types": None, "sliding_window_pattern": 6, "sliding_window": 64, "use_sliding_window": True,
        "max_window_layers": 2, "rope_parameters": None, "rope_theta": 1e4, "full_attn_idxs": [0, 2],
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    }  # fmt: skip
    known = [family for family, row in ARCHITECTURES.items() if row.is_in_transformers]
    defaults = [AutoConfig.for_model(family).to_dict() for family in known]
    defaults += [gguf_families.SIZES | fields | {"model_type": family} for family, fields in HUB_MODELS.values()]
    return [json.dumps(values | more).encode() for values in defaults for more in ({}, older)]


def _read_family(folder: Path) -> None:
    values = read_json_object(folder, "config.json")
    architecture = architecture_of(values, folder)
    architecture.layout_for(architecture.to_model_config(values))


def _read_manifest(folder: Path) -> None:
    Manifest.load(folder).check_files(folder)


def _read_texts(folder: Path) -> None:
    """Read one document as each of the small files of a package."""
    data = (folder / "config.json").read_bytes()
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).write_bytes(data)
    _all_of(*(functools.partial(load, folder) for load in (ModelConfig.load, GenerationConfig.load, ChatTemplate.load)))


def _all_of(*readings: Callable[[], object]) -> None:
    """Read a file in several ways; it is refused where none of them takes it."""
    refusals = []
    for read in readings:
        try:
            read()
        except EdgeLMError as error:
            refusals.append(error)
    if len(refusals) == len(readings):
        raise refusals[0]


def _text_seeds(folder: Path) -> list[bytes]:
    config = _tiny_package(folder, "config.json")[0]
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "eos_token_id": [2], "stop": ["x"]}
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "logit_bias": {"3": 1.0}}
    return [config, json.dumps(generation).encode(), json.dumps(tokens).encode()]


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
    _all_of(
        lambda: read_recipe(path),
        lambda: PretrainConfig(**read_settings(path, PretrainConfig)),
    )


def _read_graph(folder: Path) -> None:
    """Walk a graph, and read it as what stands behind the walk does."""
    path = folder / "model.onnx"
    graph = path.read_bytes()
    walk_onnx(graph, path, {"model.onnx.data": (folder / "model.onnx.data").stat().st_size})
    join_planes(graph, path, 1 << 20)
    products_of(graph, path)


def _read_template(folder: Path) -> None:
    template = ChatTemplate((folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace"))
    template.render(MESSAGES, variables={"tools": [{"type": "function", "parameters": {"a": {"b": [1, 2]}}}]})


def _cache_seeds(folder: Path) -> list[bytes]:
    config = ModelConfig.load(_tiny(folder))
    cache = KVCache(config)
    cache.reserve(3)
    cache.token_ids = [5, 6, 7]
    cache.save(folder / "cache", "tiny")
    return [(folder / "cache").read_bytes()]


def _tiny(folder: Path) -> Path:
    _tiny_package(folder)
    return folder


def _read_cache(folder: Path) -> None:
    KVCache.load(folder / "cache", ModelConfig.load(folder), "tiny")


def _adapter_seeds(folder: Path, name: str) -> list[bytes]:
    from tiny_adapter import write_tiny_adapter

    return [(write_tiny_adapter(folder) / name).read_bytes()]


TARGETS: dict[str, Target] = {
    "adapter": Target(
        file="adapter.json", prepare=lambda folder: _adapter_seeds(folder, "adapter.json"), mutate=mutate_json,
        read=lambda folder: AdapterManifest.load(folder) and None, count=500, long_count=100_000,
    ),
    "adapter-weights": Target(
        file="adapter_model.safetensors",
        prepare=lambda folder: _adapter_seeds(folder, "adapter_model.safetensors"), mutate=_mutate_safetensors,
        read=_read_adapter_weights, count=1_000, long_count=1_000_000,
    ),
    "gguf": Target(
        file="model.gguf", prepare=_short_gguf_seeds, mutate=mutate_bytes, read=_read_gguf, count=5_000,
        long_count=1_000_000,
    ),
    "gguf-checkpoint": Target(
        file="model.gguf", prepare=_gguf_seeds, mutate=mutate_bytes, read=_read_gguf_checkpoint, count=100,
        long_count=20_000,
    ),
    "gguf-part": Target(
        file=_SECOND_PART, prepare=_second_part_seeds, mutate=mutate_bytes,
        read=lambda folder: _read_gguf_checkpoint(folder, _SECOND_PART), count=100, long_count=20_000,
    ),
    "safetensors": Target(
        file="model.safetensors", prepare=_safetensors_seeds, mutate=_mutate_safetensors, read=_read_checkpoint,
        count=1_000, long_count=1_000_000,
    ),
    "hf-config": Target(
        file="config.json", prepare=_config_seeds, mutate=mutate_json, read=_read_checkpoint, count=500,
        long_count=100_000,
    ),
    "mlx-settings": Target(
        file="config.json", prepare=_mlx_config_seeds, mutate=_mutate_mlx_config, read=_read_mlx, count=300,
        long_count=100_000,
    ),
    "mlx-weights": Target(
        file="model.safetensors", prepare=_mlx_weight_seeds, mutate=_mutate_safetensors, read=_read_mlx, count=300,
        long_count=100_000,
    ),
    "packed": Target(
        file=packed_folders.FOLDER, prepare=packed_folders.prepare, mutate=packed_folders.mutate,
        read=packed_folders.read, count=300, long_count=100_000,
    ),
    "families": Target(
        file="config.json", prepare=_family_seeds, mutate=mutate_json, read=_read_family, count=1_000,
        long_count=100_000,
    ),
    "gguf-families": Target(
        file="metadata.json", prepare=gguf_families.metadata_of_families, mutate=mutate_json,
        read=gguf_families.read_metadata, count=3_000, long_count=1_000_000,
    ),
    "manifest": Target(
        file="edgelm.json", prepare=lambda folder: _tiny_package(folder, "edgelm.json"), mutate=mutate_json,
        read=_read_manifest, count=1_000, long_count=100_000,
    ),
    "package-texts": Target(
        file="config.json", prepare=_text_seeds, mutate=mutate_json, read=_read_texts, count=500, long_count=100_000,
    ),
    "toml": Target(
        file="settings.toml", prepare=_toml_seeds, mutate=_mutate_toml, read=_read_toml, count=300,
        long_count=100_000,
    ),
    "onnx": Target(
        file="model.onnx", prepare=lambda folder: _tiny_package(folder, "model.onnx"), mutate=mutate_bytes,
        read=_read_graph, count=1_500, long_count=1_000_000,
    ),
    "tokenizer": Target(
        file="tokenizer.json", prepare=lambda folder: _tiny_package(folder, "tokenizer.json"), mutate=mutate_json,
        read=lambda folder: Tokenizer.load(folder) and None, count=8, long_count=10_000,
    ),
    "sentencepiece": Target(
        file="tokenizer.model", prepare=sentencepiece_models.prepare_models, mutate=sentencepiece_models.mutate,
        read=_read_sentencepiece, count=1_000, long_count=1_000_000,
    ),
    "sentencepiece-settings": Target(
        file="tokenizer_config.json", prepare=sentencepiece_models.prepare_settings, mutate=mutate_json,
        read=_read_text_files, count=300, long_count=100_000,
    ),
    "marian-vocabulary": Target(
        file="vocab.json", prepare=sentencepiece_models.prepare_vocabularies,
        mutate=sentencepiece_models.mutate_vocabulary, read=_read_text_files, count=300, long_count=100_000,
    ),
    "byte-level": Target(
        file=byte_level_folders.FOLDER, prepare=byte_level_folders.prepare, mutate=byte_level_folders.mutate,
        read=byte_level_folders.read, count=500, long_count=100_000,
    ),
    "package": Target(
        file="package", prepare=packages.prepare, mutate=packages.mutate, read=packages.read, count=200,
        long_count=50_000,
    ),
    "template": Target(
        file="chat_template.jinja", prepare=lambda _: [text.encode() for text in TEMPLATES], mutate=mutate_template,
        read=_read_template, count=400, long_count=10_000,
    ),
    "http-body": Target(
        file="request", prepare=lambda _: http_bodies.seeds(), mutate=http_bodies.mutate,
        read=lambda folder: http_bodies.send(folder / "request"), count=400, long_count=100_000,
    ),
    "kv-cache": Target(
        file="cache", prepare=_cache_seeds, mutate=mutate_bytes, read=_read_cache, count=500, long_count=100_000,
    ),
}  # fmt: skip
