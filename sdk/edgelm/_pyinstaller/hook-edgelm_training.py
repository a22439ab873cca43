"""The page of `edgelm inspect`."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("edgelm_training")
