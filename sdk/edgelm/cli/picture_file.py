"""PictureFile: the path of a picture to be drawn, checked before what it is to show is measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class PictureFile(click.Path):
    """A path that ends in .svg, in a folder that is there."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            click.BadParameter: it has another ending, or its folder is missing.
        """
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() != ".svg":
            self.fail(f"the picture is an SVG, so let the name of {str(path)!r} end in .svg.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no folder {str(path.parent)!r}. Make it first.", param, ctx)
        return path


picture_option = click.option("-o", "--output", type=PictureFile(), metavar="FILE", help="Draw a picture (SVG) too.")
