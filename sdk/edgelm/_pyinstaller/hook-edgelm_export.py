"""The exporter's texts and tables."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("edgelm_export")
