"""ExternalData: the file beside one graph or two that holds the weights, written tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray

# ONNX Runtime maps the file: tensors that begin on a page need no copy.
_ALIGNMENT = 4096


class ExternalData:
    """Append tensors to a file, and return the initializers that point to them.

    beside: another file of the folder; a tensor that is in it under the same name is pointed to there.
    Source: the ONNX specification of external data (onnx/docs/ExternalData.md). Use as a context manager; a write that
    the disk refuses raises OSError, at the latest when the file is closed.
    """

    def __init__(self, path: Path, beside: ExternalData | None = None) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("wb")
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._beside = beside

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> onnx.TensorProto:
        """Write one tensor; nothing of it stays in memory. One of that name is there once, for all graphs."""
        for written in (self, self._beside):
            if written is not None and name in written._tensors:
                return written._tensors[name]
        array = np.ascontiguousarray(array)
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        self._file.write(array.reshape(-1).view(np.uint8).data)
        tensor = onnx.TensorProto(
            name=name,
            dims=array.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._path.name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._tensors[name] = tensor
        return tensor
