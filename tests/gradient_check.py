"""The gradients of transformers' model and of ours, under our names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_training.model import Transformer

Gradients = dict[str, Tensor]


def gradients_of(model: Any, ours: Transformer, folder: Path) -> tuple[Gradients, Gradients]:
    """Return transformers' gradients and ours; `folder`, which has the tokenizer, gets a folder `gradients` beside it.

    Theirs are saved as weights, and read by the importer, which knows what each is called here.
    """
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    if hasattr(model, "final_logits_bias"):  # a buffer there, which learns nothing
        model.final_logits_bias.zero_()
    saved = folder.with_name("gradients")
    model.save_pretrained(saved)
    for path in folder.glob("tokenizer*"):
        shutil.copy(path, saved)
    read = HuggingFaceCheckpoint(saved)
    learned = ours.config.tensor_shapes().keys() - dict(ours.named_buffers()).keys()
    theirs = {name: torch.from_numpy(read.tensor(name).copy()) for name in learned}
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    learns_nothing = {name for name in theirs if name.endswith(".layer_scalar")}  # a buffer in both
    theirs = {name: theirs[name] for name in theirs.keys() - learns_nothing}
    assert found.keys() == theirs.keys()
    return theirs, found


def check_gradients(theirs: Gradients, found: Gradients) -> None:
    """Compare each tensor's, relative to its norm."""
    largest = max(gradient.norm() for gradient in theirs.values())
    for name, gradient in theirs.items():
        # Where softmax takes a key's bias away again, nothing but rounding is left of the gradient.
        size = max(gradient.norm(), 1e-3 * largest)
        # Float32 sums in another order. Measured: 1.4e-5.
        assert (found[name] - gradient).norm() / size < 1e-4, name
