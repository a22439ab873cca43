"""The command: its subcommands are entry points, and the list of them is read from their source."""

from PyInstaller.utils.hooks import collect_entry_point

datas, hiddenimports = collect_entry_point("edgelm.commands")
module_collection_mode = dict.fromkeys(hiddenimports, "pyz+py")
