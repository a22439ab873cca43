"""The command `edgelm`; nothing else in the package prints."""
