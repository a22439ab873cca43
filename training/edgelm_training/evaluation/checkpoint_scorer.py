"""CheckpointScorer: the surprises of a checkpoint, by PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgelm.text.tokenizer import Tokenizer
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.runs.device import choose_device
from edgelm_training.settings.train_config import TrainConfig


class CheckpointScorer:
    """Score with a checkpoint folder in float32; see `perplexity.Scorer`.

    Raises:
        CheckpointError, ConfigError: as `load_checkpoint`, and for a device that is not here.
        TokenizerError: the folder has no tokenizer.
    """

    kind = "checkpoint"

    def __init__(self, folder: Path, *, device: str = "auto", threads: int | None = None) -> None:
        self.folder = folder
        self.tokenizer = Tokenizer.load(folder)
        self._device = choose_device(TrainConfig(device=device, precision="fp32", threads=threads)).device
        self._model = load_checkpoint(folder).to(self._device).eval()
        self.config = self._model.config

    @torch.no_grad()
    def surprises(self, ids: Sequence[int], first: int) -> NDArray[np.float64]:
        """Return -log p (natural) of each of ids[first:], given all ids before it."""
        ids_T = torch.tensor(ids, device=self._device)
        logits_TV = self._model(ids_T[None, :-1])[0, first - 1 :]
        surprises_T = functional.cross_entropy(logits_TV, ids_T[first:], reduction="none")
        return surprises_T.cpu().numpy().astype(np.float64)
