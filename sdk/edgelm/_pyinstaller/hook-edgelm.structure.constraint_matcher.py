"""llguidance, where it is installed: it asks for its own version."""

from PyInstaller.utils.hooks import can_import_module, copy_metadata

hiddenimports = ["llguidance"] if can_import_module("llguidance") else []
datas = copy_metadata("llguidance") if hiddenimports else []
