"""Distillation as a recipe: a student learns a teacher's next-token probabilities on the texts of a corpus.

`edgelm distill` is its command. On many devices: torchrun --nproc-per-node 8 -m edgelm_training.distill distill.toml
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from edgelm_training.pretrain import FIXED, build_recipe
from edgelm_training.run import execute_run
from edgelm_training.runs.recipe import Recipe
from edgelm_training.runs.train_log import Reporter
from edgelm_training.settings.distill_config import DistillConfig
from edgelm_training.settings.settings import SettingError
from edgelm_training.trainer import Outcome


def distill(settings: Mapping[str, Any], *, resume: bool = False, reporter: Reporter | None = None) -> Outcome:
    """Train a student on shards and on what its teacher makes of them; `settings` are fields of DistillConfig.

    Raises:
        EdgeLMError: there is no teacher or it does not fit, and as `pretrain`.
    """
    return execute_run(DistillConfig, settings, _build_recipe, resume=resume, fixed=FIXED, reporter=reporter)


def _build_recipe(config: DistillConfig, reporter: Reporter) -> tuple[DistillConfig, Recipe]:
    if config.teacher is None:
        raise SettingError("teacher is not set: name the checkpoint folder to learn from (--teacher).")
    return build_recipe(config, reporter)


if __name__ == "__main__":
    from edgelm.cli.main import main

    main(["distill", *sys.argv[1:]])
