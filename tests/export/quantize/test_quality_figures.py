"""The figures in a manifest's `quality`, beside the same ones computed of PyTorch's logits and the loaded package's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from make_tiny_model import CONFIG, make_checkpoint
from torch.nn import functional as F  # noqa: N812

import edgelm
from edgelm.architecture.quantization_recipe import Precision, Rule
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.verification import verify
from edgelm_export.verification.verification_text import verification_text
from edgelm_training.checkpoints.checkpoint import load_checkpoint

INT4 = Precision(
    name="mine", rules=(Rule(pattern="embed", scheme="int8-block64"), Rule(pattern=".", scheme="int4-block64"))
)
GREEDY = edgelm.GenerationConfig(max_new_tokens=32, ignore_eos=True)


@pytest.fixture(autouse=True)
def _whole_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check packages on the text that users' are checked on; the other tests here take a sixteenth of it."""
    monkeypatch.setattr(verify, "verification_text", verification_text)
    monkeypatch.setattr(verify, "_WINDOWS", 4)
    monkeypatch.setattr(verify, "_WINDOW_TOKENS", 256)


@torch.no_grad()
def test_the_figures_are_those_of_pytorch_and_the_loaded_package(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=5)  # whose first greedy tokens are the source's
    quality = export_package(HuggingFaceCheckpoint(checkpoint), tmp_path / "package", INT4).quality
    assert quality is not None
    model, source = edgelm.load(tmp_path / "package"), load_checkpoint(checkpoint)
    ids, begin = model.tokenizer.encode(verification_text()), list(model.tokenizer.leading_ids)
    windows = [begin + ids[start : start + 256] for start in range(0, 1024, 256)]
    targets = torch.tensor([id_ for window in windows for id_ in window[1:]])
    ours = torch.cat([
        torch.tensor(model.session.forward(window, model.session.new_cache(), all_logits=True)[:-1])
        for window in windows
    ])  # fmt: skip
    theirs = torch.cat([source(torch.tensor([window]))[0, :-1] for window in windows])
    assert quality.tokens == len(targets) == len(theirs)
    divergence = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")
    # Float32 sums in another order: 3.5e-7 measured.
    expected = {
        "perplexity": F.cross_entropy(ours, targets).exp(),
        "source_perplexity": F.cross_entropy(theirs, targets).exp(),
        "mean_kl_divergence": divergence,
        "max_logit_difference": (ours - theirs).abs().max(),
        "top1_agreement": (ours.argmax(-1) == theirs.argmax(-1)).double().mean(),
    }
    found = {name: getattr(quality, name) for name in expected}
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4)

    prompt = windows[0][:64]
    chosen = list(model.generate(prompt, GREEDY).token_ids)
    wanted = source(torch.tensor([prompt + chosen]))[0, 63:-1].argmax(-1).tolist()
    same = [one == other for one, other in zip(chosen, wanted, strict=True)]
    assert (quality.greedy_tokens, quality.greedy_agreement) == (32, same.index(False))


def test_a_token_that_the_model_does_not_have_is_left_out_and_each_window_begins_like_a_text() -> None:
    tokenizer: Any = SimpleNamespace(encode=lambda _: list(range(400)) * 4, leading_ids=(7, 8))
    _, windows, prompt = verify._texts(tokenizer, replace(CONFIG, vocab_size=320, max_position_embeddings=100))
    assert [len(window) for window in windows] == [100] * 4
    assert [window[:3] for window in windows] == [[7, 8, start] for start in (0, 98, 196, 294)]
    assert windows[3][-1] == 71  # behind 319 comes 0
    assert prompt == windows[0][:50]
