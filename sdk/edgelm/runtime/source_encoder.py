"""SourceEncoder: the graph that reads the source text of an encoder-decoder model, once for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.errors import ContextLengthError, PackageError
from edgelm.runtime.onnx_runtime import raise_as_ours
from edgelm.runtime.tables import Tables


class SourceEncoder:
    """Turn a source text into keys and values for the decoder's cross-attention.

    session: ONNX Runtime's, of the graph at `path`. tables: what it was given. outputs: what the decoder's graph takes,
    in that order. device: where it wants them.

    Raises:
        PackageError: the graph does not give them.
    """

    def __init__(self, session: Any, tables: Tables, path: Path, outputs: Sequence[str], device: str) -> None:
        given = [value.name for value in session.get_outputs()]
        if sorted(given) != sorted(outputs) or [value.name for value in session.get_inputs()] != ["input_ids"]:
            raise PackageError(
                f"{path} gives {len(given)} outputs, and not what the decoder beside it takes. Export the package "
                "again."
            )
        self._session, self.tables, self._outputs, self._device = session, tables, outputs, device

    def encode(self, source_ids: Sequence[int]) -> list[Any]:
        """Return the keys and values [1, N, S, H] of S tokens, as ONNX Runtime's values.

        Raises:
            ContextLengthError: there are no tokens.
            ProviderError: ONNX Runtime fails at it.
        """
        if not source_ids:
            raise ContextLengthError("The source has no tokens; write at least one character.")
        self.tables.reach(len(source_ids))
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([source_ids], np.int64))
        for name in self._outputs:
            binding.bind_output(name, self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise_as_ours(error)
        values: list[Any] = binding.get_outputs()
        return values
