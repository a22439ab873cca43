"""PictureFile: the path of a picture to be drawn, checked before what it is to show is measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgelm.package.manifest import FILE_NAME


class PictureFile(click.Path):
    """A path that ends in .svg, in a folder that is there and no model package, which would not load with it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path.

        Raises:
            click.BadParameter: it has another ending, or its folder is missing or a model package.
        """
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() != ".svg":
            self.fail(f"the picture is an SVG, so let the name of {str(path)!r} end in .svg.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no folder {str(path.parent)!r}. Make it first.", param, ctx)
        if (path.parent / FILE_NAME).is_file():
            self.fail(f"{str(path.parent)!r} is a model package, which holds nothing else. Draw beside it.", param, ctx)
        return path


picture_option = click.option("-o", "--output", type=PictureFile(), metavar="FILE", help="Draw a picture (SVG) too.")
