"""`edgelm merge`: what tells the layers of other programs' adapters is an entry point."""

from PyInstaller.utils.hooks import collect_entry_point

datas, hiddenimports = collect_entry_point("edgelm.adapter_layers")
