"""`edgelm doctor`: it looks for the builds of ONNX Runtime that are installed."""

from importlib import metadata

from PyInstaller.utils.hooks import copy_metadata

_names = {(distribution.name or "").lower() for distribution in metadata.distributions()}
datas = [entry for name in sorted(_names) if name.startswith("onnxruntime") for entry in copy_metadata(name)]
