"""Packages, and adapters beside them: each of their files alone, and the whole read back as a checkpoint."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from fuzz import lora_folders, packages
from fuzz.checkpoint_files import mutate_safetensors
from fuzz.mutations import mutate_bytes, mutate_json, mutate_template
from fuzz.target import Target, all_of, tiny_package

from edgelm.config import ModelConfig
from edgelm.files.safetensors_reader import parse_matrices
from edgelm.generation_config import GenerationConfig
from edgelm.package.adapter import AdapterManifest
from edgelm.package.manifest import Manifest
from edgelm.package.onnx_walk import walk_onnx
from edgelm.package.peft_format import in_pairs
from edgelm.runtime.adapter_graph import products_of
from edgelm.runtime.joined_planes import join_planes
from edgelm.runtime.tables import with_tables
from edgelm.text.chat_template import ChatTemplate

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


def _read_adapter_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    in_pairs(parse_matrices(path.read_bytes(), path), path)


def _read_manifest(folder: Path) -> None:
    Manifest.load(folder).check_files(folder)


def _read_texts(folder: Path) -> None:
    """Read one document as each of the small files of a package."""
    data = (folder / "config.json").read_bytes()
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).write_bytes(data)
    all_of(*(functools.partial(load, folder) for load in (ModelConfig.load, GenerationConfig.load, ChatTemplate.load)))


def _text_seeds(folder: Path) -> list[bytes]:
    config = tiny_package(folder, "config.json")[0]
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "eos_token_id": [2], "stop": ["x"]}
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "logit_bias": {"3": 1.0}}
    return [config, json.dumps(generation).encode(), json.dumps(tokens).encode()]


def _read_graph(folder: Path) -> None:
    """Walk a graph, and read it as what stands behind the walk does."""
    path = folder / "model.onnx"
    graph = path.read_bytes()
    walk_onnx(graph, path, {"model.onnx.data": (folder / "model.onnx.data").stat().st_size})
    with_tables(graph, path, None)
    join_planes(graph, path, 1 << 20)
    products_of(graph, path)


def _read_template(folder: Path) -> None:
    template = ChatTemplate((folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace"))
    template.render(MESSAGES, variables={"tools": [{"type": "function", "parameters": {"a": {"b": [1, 2]}}}]})


def _adapter_seeds(folder: Path, name: str) -> list[bytes]:
    from tiny_adapter import write_tiny_adapter

    return [(write_tiny_adapter(folder) / name).read_bytes()]


ROWS: dict[str, Target] = {
    "adapter": Target(
        file="adapter.json", prepare=lambda folder: _adapter_seeds(folder, "adapter.json"), mutate=mutate_json,
        read=lambda folder: AdapterManifest.load(folder) and None, count=200, long_count=100_000,
    ),
    "adapter-weights": Target(
        file="adapter_model.safetensors",
        prepare=lambda folder: _adapter_seeds(folder, "adapter_model.safetensors"), mutate=mutate_safetensors,
        read=_read_adapter_weights, count=400, long_count=1_000_000,
    ),
    "lora": Target(
        file=lora_folders.FOLDER, prepare=lora_folders.prepare, mutate=lora_folders.mutate, read=lora_folders.read,
        count=80, long_count=50_000,
    ),
    "manifest": Target(
        file="edgelm.json", prepare=lambda folder: tiny_package(folder, "edgelm.json"), mutate=mutate_json,
        read=_read_manifest, count=400, long_count=100_000,
    ),
    "package-texts": Target(
        file="config.json", prepare=_text_seeds, mutate=mutate_json, read=_read_texts, count=200, long_count=100_000,
    ),
    "onnx": Target(
        file="model.onnx", prepare=lambda folder: tiny_package(folder, "model.onnx"), mutate=mutate_bytes,
        read=_read_graph, count=600, long_count=1_000_000,
    ),
    "package": Target(
        file="package", prepare=packages.prepare, mutate=packages.mutate, read=packages.read, count=80,
        long_count=50_000,
    ),
    "template": Target(
        file="chat_template.jinja", prepare=lambda _: [text.encode() for text in TEMPLATES], mutate=mutate_template,
        read=_read_template, count=160, long_count=10_000,
    ),
}  # fmt: skip
