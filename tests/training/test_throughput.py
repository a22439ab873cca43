"""How much of the device a run uses: operations counted by hand, and a peak that is measured."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch
from tiny_training_runs import settings

from edgelm.config import ModelConfig
from edgelm.runtime import cpu
from edgelm_training.model import Transformer
from edgelm_training.pretrain import pretrain
from edgelm_training.runs import device, throughput
from edgelm_training.runs.device import Device, choose_device
from edgelm_training.runs.throughput import flops_per_token, peak_flops, peak_memory_bytes
from edgelm_training.runs.train_log import SilentReporter
from edgelm_training.settings.train_config import TrainConfig


@pytest.mark.parametrize("tied", [False, True])
def test_operations_are_those_of_the_matrix_products(tied: bool, tiny_config: ModelConfig) -> None:
    config = dataclasses.replace(tiny_config, tie_word_embeddings=tied)
    # Every matrix product multiplies and adds once forward and twice backward; a tied table is the head's matrix.
    matrices = sum(p.numel() for name, p in Transformer(config).named_parameters() if p.ndim == 2)
    matrices -= 0 if tied else 61 * 24
    norms = 24 * 5
    attention = 12 * 2 * 4 * 10 * 16

    assert flops_per_token(config, 16) == 6 * (matrices + norms) + attention


def test_a_token_costs_the_experts_that_it_goes_through_and_the_layers_that_attend(tiny_config: ModelConfig) -> None:
    plain = flops_per_token(tiny_config, 16)
    experts = dataclasses.replace(tiny_config, num_experts=6, num_experts_per_tok=2)
    mixed = dataclasses.replace(tiny_config, layer_types=("conv", "full_attention"), conv_L_cache=3)

    # In each of two layers two feed-forwards of three matrices in the place of one, and a router.
    assert flops_per_token(experts, 16) - plain == 6 * 2 * (3 * 24 * 40 + 6 * 24)
    # In one layer projections to 3 · 24 and back and a kernel, in the place of four projections and attention.
    convolution, attention = 4 * 24 * 24 + 3 * 24, 2 * 24 * 40 + 2 * 24 * 20
    assert flops_per_token(mixed, 16) - plain == 6 * (convolution - attention) - 12 * 4 * 10 * 16


@pytest.mark.parametrize(
    "features", [{"position": "learned"}, {"hidden_size_per_layer_input": 4, "norm_placement": "both"}]
)
def test_a_row_of_a_table_costs_nothing(features: dict[str, object], tiny_config: ModelConfig) -> None:
    config = dataclasses.replace(tiny_config, **features)
    tables = [shape for name, shape in config.tensor_shapes().items() if "embed_pos" in name or "tokens_per" in name]
    others = config.count_parameters() - sum(map(math.prod, tables)) - 61 * 24

    assert len(tables) == 1
    assert flops_per_token(config, 16) == 6 * others + 12 * 2 * 4 * 10 * 16


def test_a_cpus_peak_is_measured_and_memory_is_known() -> None:
    device = choose_device(TrainConfig(device="cpu", precision="fp32", threads=1))
    peak = peak_flops(device)
    assert peak is not None
    assert peak > 1e8  # any processor
    memory = peak_memory_bytes(torch.device("cpu"))
    assert memory is not None
    assert memory > 1e7


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("Tesla T4", 65e12),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA T400 4GB", None),
    ],
)
def test_a_gpus_peak_is_that_of_its_whole_name(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(Device(device=torch.device("cuda"), precision="bf16")) == peak
    assert peak_flops(Device(device=torch.device("cuda"), precision="fp32")) is None


@pytest.mark.parametrize(
    ("precision", "features", "warns"),
    [
        ("fp32", {}, False),
        ("bf16", {}, True),
        ("bf16", {"amx_bf16": True}, False),
        ("fp16", {"amx_bf16": True}, True),
        ("fp16", {"avx512_fp16": True}, False),
        ("fp16", {"amx_fp16": True}, False),
    ],
)
def test_a_precision_that_a_cpu_emulates_is_said_to_be_slow_and_no_peak_is_measured_in_it(
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    features: dict[str, bool],
    warns: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.setattr(throughput, "_PROBE_SIZE", 32)
    notes: list[str] = []
    monkeypatch.setattr(SilentReporter, "note", lambda _, text: notes.append(text))

    pretrain(settings(tiny_shards, tmp_path / "run", precision=precision, max_steps=1, warmup_steps=0))

    assert any(note.startswith(f"precision is {precision}, for which this CPU") for note in notes) == warns
    device = choose_device(TrainConfig(device="cpu", precision=precision, threads=1))
    assert (peak_flops(device) is None) == warns


@pytest.mark.parametrize(
    ("features", "warns"), [({}, True), ({"avx512_bf16": True}, False), ({"amx_bf16": True}, False)]
)
def test_muon_on_a_cpu_without_bfloat16_is_said_to_be_slow(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], warns: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    notes: list[str] = []
    monkeypatch.setattr(SilentReporter, "note", lambda _, text: notes.append(text))
    pretrain(settings(tiny_shards, tmp_path / "run", optimizer="muon", max_steps=1, warmup_steps=0))
    assert any(note.startswith("muon computes in bfloat16") for note in notes) == warns


def test_the_best_precision_of_a_cpu_is_what_it_has_instructions_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, precision in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert choose_device(TrainConfig(device="cpu", threads=1)).precision == precision


@pytest.mark.parametrize(
    ("features", "precision"), [({"avx512_bf16", "avx2"}, "bf16"), ({"avx2"}, "fp32"), (None, "fp32")]
)
def test_an_older_pytorch_knows_no_instructions_and_linux_does(
    monkeypatch: pytest.MonkeyPatch, features: set[str] | None, precision: str
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(device, "cpu_features", lambda: features)
    assert choose_device(TrainConfig(device="cpu", threads=1)).precision == precision


def test_a_containers_share_of_time_bounds_the_threads_and_processes_share_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "physical_cores", lambda _: 16)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: 4.5)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    choose_device(TrainConfig(device="cpu", precision="fp32"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    choose_device(TrainConfig(device="cpu", precision="fp32"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    choose_device(TrainConfig(device="cpu", precision="fp32"))
    choose_device(TrainConfig(device="cpu", precision="fp32", threads=7))  # who says how many has them
    assert threads == [4, 2, 1, 7]


def test_a_process_that_is_pinned_to_its_part_of_the_cores_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(cpu, "cpu_quota", lambda: None)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for own, of_launcher in ((4, 16), (8, 16), (4, 4)):  # of its own; of a node that it shares; of all of them
        monkeypatch.setattr(cpu, "physical_cores", {0: own, os.getppid(): of_launcher}.__getitem__)
        choose_device(TrainConfig(device="cpu", precision="fp32"))
    assert threads == [4, 4, 1]


def test_equal_bits_are_asked_of_torch_where_a_run_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    for deterministic in (True, False):
        choose_device(TrainConfig(device="cpu", precision="fp32", threads=1, deterministic=deterministic))
    assert asked == [True, False]
