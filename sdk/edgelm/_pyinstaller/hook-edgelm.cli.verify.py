"""`edgelm verify --source`: the check is an entry point."""

from PyInstaller.utils.hooks import collect_entry_point

datas, hiddenimports = collect_entry_point("edgelm.verifiers")
