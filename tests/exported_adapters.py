"""Adapters as PEFT trains them, beside packages of one checkpoint; PEFT's own sums are the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_tiny_model import make_checkpoint
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision
from edgelm.language_model import LanguageModel
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

PeftModel.create_or_update_model_card = lambda self, folder: None  # a text in jinja that no test reads, 30 ms for each

IDS = [5, 17, 3, 44, 8, 60, 200, 7, 9, 41]
# The names of the adapters, with what they change: all, one part of a fused product, other ranks and alphas here and
# there: by the end of a name, by an expression, and by what is no whole part of a name and so is none.
ADAPTERS: Mapping[str, dict[str, object]] = {
    "all": {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "values": {"r": 3, "target_modules": ["v_proj"], "use_rslora": True},
    "ranks": {
        "r": 4, "target_modules": ["up_proj", "down_proj"], "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"down_proj": 2.5, r"model\.layers\.[1-9]\..*": 9, "p_proj": 100},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """Packages of one checkpoint, by precision; adapters, by name, as PEFT saved them."""

    checkpoint: Path
    packages: Mapping[str, Path]
    adapters: Mapping[str, Path]


def export_all(folder: Path) -> Exported:
    """Export the packages, and save the adapters."""
    checkpoint = make_checkpoint(folder / "ckpt")
    packages = {}
    recipes: dict[str, str | Precision] = {precision: precision for precision in ("fp32", "int8")}
    recipes |= {
        f"{name} with a prefill graph": replace(PRECISIONS[name].with_prefill_graph(), perplexity_bound=1.5)
        for name in ("fp32", "int8")
    }
    for name, recipe in recipes.items():
        packages[name] = folder / name
        with HuggingFaceCheckpoint(checkpoint) as source:
            export_package(source, packages[name], recipe)
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        config = LoraConfig(lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **fields)
        get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config).save_pretrained(folder / name)
    return Exported(checkpoint, packages, {name: folder / name for name in ADAPTERS})


@torch.no_grad()
def merged_logits(exported: Exported, name: str | None, ids: Sequence[int] = IDS) -> NDArray[np.float32]:
    """Compute the logits of the checkpoint with an adapter merged into it, by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(exported.checkpoint)
    if name is not None:
        model = PeftModel.from_pretrained(model, exported.adapters[name]).merge_and_unload()
    return model.eval()(torch.tensor([ids])).logits[0].numpy()


def our_logits(model: LanguageModel, name: str | None) -> NDArray[np.float32]:
    """Compute the logits of the same tokens by the package: a prompt, and then token by token."""
    cache = model.session.new_cache()
    cache.use_adapter(name)
    first = model.session.forward(IDS[:6], cache, all_logits=True)
    rest = [model.session.forward((id_,), cache).copy() for id_ in IDS[6:]]
    return np.concatenate([first, *rest])


def adapted_by_peft(folder: Path, **changes: Any) -> PeftModel:
    """Open a folder in transformers, and put a random adapter on every projection of it."""
    fields = {"r": 3, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**(fields | changes))).eval()


def check_beside_package(adapted: PeftModel, package: Path, folder: Path) -> None:
    """Save an adapter as PEFT does, export it for a package, and compare what they compute."""
    adapted.save_pretrained(folder / "peft")
    with torch.no_grad():
        expected = adapted(torch.tensor([IDS])).logits[0].numpy()
    export_adapter(folder / "peft", package, folder / "adapter")
    model = edgelm.load(package)
    model.load_adapter(folder / "adapter")
    assert np.abs(our_logits(model, None) - expected).max() > 0.1
    np.testing.assert_allclose(our_logits(model, "adapter"), expected, atol=1e-4, rtol=0)


def with_adapters(exported: Exported, precision: str, folder: Path, *names: str) -> LanguageModel:
    """Load a package with adapters that are exported for it."""
    model = edgelm.load(exported.packages[precision])
    for name in names:
        export_adapter(exported.adapters[name], exported.packages[precision], folder / name)
        model.load_adapter(folder / name)
    return model


# Sums in another order. Measured: 6.5e-6.
CLOSE = {"atol": 2e-5, "rtol": 0}
