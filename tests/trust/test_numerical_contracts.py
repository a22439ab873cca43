"""The numerical contracts: how far each precision is from PyTorch, and that the same request has the same bits.

docs/results/trust.md has the measured values beside the bounds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from numpy.typing import NDArray

import edgelm
from edgelm import Engine, EngineOptions, GenerationConfig, SessionOptions
from edgelm.decoding.answer import join

# Rows have several blocks of 64; int4 keeps the first and the last layers in int8, so there are others.
SMALL = dataclasses.replace(
    CONFIG, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    num_hidden_layers=6,
)  # fmt: skip
TOKENS = 300
# precision -> the largest difference of a logit from PyTorch's, and the mean KL divergence in nats, for logits with a
# standard deviation of 1. Measured: 8.7e-6 and 1e-12, 0.32 and 0.0015, 1.6 and 0.036; the bounds are twice that.
BOUNDS = {"fp32": (2e-5, 1e-9), "int8": (0.65, 0.003), "int4": (3.2, 0.07)}
HASHES = """
import json, sys
from test_numerical_contracts import hash_of_logits
print(json.dumps({package: [hash_of_logits(package, threads) for threads in (1, 2)] for package in sys.argv[1:]}))
"""


def hash_of_logits(package: str | Path, threads: int) -> str:
    session = edgelm.load(package, SessionOptions(threads=threads)).session
    return hashlib.sha256(session.forward(ids(), session.new_cache(), all_logits=True).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source"), SMALL)


@pytest.fixture(scope="module")
def packages(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from edgelm_export.exporter import export_package
    from edgelm_export.sources.sources import open_checkpoint

    folder = tmp_path_factory.mktemp("packages")
    with open_checkpoint(source) as checkpoint:
        for precision in BOUNDS:
            export_package(checkpoint, folder / precision, precision)
    return {precision: folder / precision for precision in BOUNDS}


@pytest.fixture(scope="module")
def logits_of_pytorch(source: Path) -> NDArray[np.float32]:
    import torch
    from transformers_llama import load_llama

    with torch.no_grad():
        return np.asarray(load_llama(source)(torch.tensor([ids()])).logits[0])


def ids(seed: int = 0) -> list[int]:
    return [int(id_) for id_ in np.random.default_rng(seed).integers(3, SMALL.vocab_size, TOKENS)]


def log_probabilities(logits_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted_TV = logits_TV.astype(np.float64) - logits_TV.max(-1, keepdims=True)
    return shifted_TV - np.log(np.exp(shifted_TV).sum(-1, keepdims=True))


@pytest.mark.parametrize("precision", BOUNDS)
def test_each_precision_keeps_its_distance_from_pytorch(
    packages: dict[str, Path], logits_of_pytorch: NDArray[np.float32], precision: str
) -> None:
    session = edgelm.load(packages[precision]).session
    logits_TV = session.forward(ids(), session.new_cache(), all_logits=True)

    largest, divergence = BOUNDS[precision]
    found = float(np.abs(logits_TV - logits_of_pytorch).max())
    expected_TV, ours_TV = log_probabilities(logits_of_pytorch), log_probabilities(logits_TV)
    kl = float((np.exp(expected_TV) * (expected_TV - ours_TV)).sum(-1).mean())
    print(f"{precision}: {found:.2e} {kl:.2e}, standard deviation {logits_of_pytorch.std():.2f}")
    assert found < largest
    assert abs(kl) < divergence


def test_runs_and_threads_give_the_same_bits(packages: dict[str, Path]) -> None:
    command = [sys.executable, "-c", HASHES, *map(str, packages.values())]
    paths = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((paths, os.environ.get("PYTHONPATH", "")))}
    other = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    for package in packages.values():
        assert len({*other[str(package)], hash_of_logits(package, 1), hash_of_logits(package, 2)}) == 1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_request_has_the_same_tokens_and_logprobs_in_any_company(packages: dict[str, Path], precision: str) -> None:
    model = edgelm.load(packages[precision], SessionOptions(threads=1))
    prompts = [ids(seed)[: 5 + 40 * seed] for seed in range(7)]
    configs = [
        GenerationConfig(max_new_tokens=20, temperature=0.7 * (i % 2), seed=i, logprobs=1, ignore_eos=True)
        for i in range(7)
    ]
    alone = [model.generate(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]

    for size in (2, 7):
        fresh = edgelm.load(packages[precision], SessionOptions(threads=1))
        with Engine(fresh, EngineOptions(max_batch=size)) as engine:
            running = [engine.submit(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
            together = [join(generation) for generation in running]
        for one, other in zip(alone, together, strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprobs == other.logprobs
