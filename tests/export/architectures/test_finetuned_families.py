"""What the importers read can be fine-tuned: each family's way from a Hugging Face folder to a package that learned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import (
    GEMMA3N,
    GEMMA4,
    GRANITE4_H,
    LFM2,
    QWEN3_5,
)
from latent_models import LATENT
from mamba_models import FALCON_H1, FALCON_H1_MULTIPLIERS, NEMOTRON_H
from tiny_training_runs import finetune_settings, put_adapter_on
from transformers import PreTrainedModel
from unchecked_export import export_unchecked

import edgelm
from edgelm.runtime.session import DecoderSession
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.sources import open_checkpoint
from edgelm_training import trainer
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.finetune import finetune
from edgelm_training.merge import merge_adapter

GUIDE = Path(__file__).parents[3] / "docs/guides/finetune.md"
# What is imported has our names, whatever its family calls its layers: of those with plain ones, two are enough.
FAMILIES: dict[str, dict[str, Any]] = {
    "phi": {"partial_rotary_factor": 0.5, "tie_word_embeddings": False},
    "gemma3_text": {"head_dim": 16, "sliding_window": 9},
    "lfm2": LFM2,
    "gemma3n_text": GEMMA3N,
    "gemma4_text": GEMMA4,
    "qwen3_5_text": QWEN3_5,
    "granitemoehybrid": GRANITE4_H,
    "falcon_h1": FALCON_H1 | FALCON_H1_MULTIPLIERS,
    "nemotron_h": NEMOTRON_H,
    "youtu": LATENT,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_fine_tuned_merged_and_exported(
    family: str, save_model: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "peak_flops", lambda _: 1e11)  # to measure it is a sixth of the work
    save_model(family, tmp_path / "hf", **FAMILIES[family])
    base = tmp_path / "base"
    import_checkpoint(tmp_path / "hf", base)
    (template,) = re.findall(r"```jinja\n(.*?)\n```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (base / "chat_template.jinja").write_text(template)
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": f"It is {i}."}) + "\n" for i in range(8)))
    settings = finetune_settings(
        base, data, tmp_path / "run", max_steps=3, learning_rate=2e-2, save_every=3, eval_every=0
    )

    finetune(settings)
    merge_adapter(tmp_path / "run/latest", tmp_path / "merged")
    with open_checkpoint(tmp_path / "merged") as checkpoint:
        export_unchecked(checkpoint, tmp_path / "package", "fp32")

    ids = np.random.default_rng(0).integers(3, 320, 20).tolist()
    model = load_checkpoint(base).eval()
    with torch.no_grad():
        before_TV = model(torch.tensor([ids]))[0].numpy()
        put_adapter_on(model, tmp_path / "run/latest")
        tuned_TV = model(torch.tensor([ids]))[0].numpy()
    assert np.abs(tuned_TV - before_TV).max() > 0.05
    package = edgelm.load(tmp_path / "package")
    session: DecoderSession = package.session
    logits_TV = session.forward(ids, session.new_cache(), all_logits=True)
    # float32 sums in another order, through A and B apart or merged. Measured: 2e-5 on logits of up to 8.
    np.testing.assert_allclose(logits_TV, tuned_TV, rtol=0, atol=2e-4)
    with open_checkpoint(base) as checkpoint:
        export_unchecked(checkpoint, tmp_path / "base-package", "fp32")
    export_adapter(tmp_path / "run/latest", tmp_path / "base-package", tmp_path / "adapter")
    beside = edgelm.load(tmp_path / "base-package")
    beside.load_adapter(tmp_path / "adapter", "tuned")
    cache = beside.new_cache()
    cache.use_adapter("tuned")
    logits_TV = beside.session.forward(ids, cache, all_logits=True)
    np.testing.assert_allclose(logits_TV, tuned_TV, rtol=0, atol=2e-4)
    assert package.chat([{"role": "user", "content": "3?"}], edgelm.GenerationConfig(max_new_tokens=2)).text is not None
