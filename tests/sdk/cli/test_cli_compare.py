from __future__ import annotations

import dataclasses
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from command_line import invoke

from edgelm import speed
from edgelm.errors import ConfigError
from edgelm.package.manifest import Manifest
from edgelm.pictures.scatter_picture import Dot, draw_scatter
from edgelm.runtime.session_options import SessionOptions
from edgelm.testing import tiny_model_path


@pytest.fixture
def packages(tmp_path: Path) -> list[str]:
    """Two packages, of which the second says that it is smaller and worse."""
    for name in ("good", "small"):
        shutil.copytree(tiny_model_path(), tmp_path / name)
    manifest = Manifest.load(tmp_path / "small")
    assert manifest.quality is not None
    quality = dataclasses.replace(manifest.quality, mean_kl_divergence=0.25, perplexity=500.0)
    dataclasses.replace(manifest, name="small", precision="int4", quality=quality).save(tmp_path / "small")
    return [str(tmp_path / "good"), str(tmp_path / "small")]


def compare(*arguments: str):
    return invoke("compare", *arguments)


def test_the_table_has_a_row_for_each_package_in_the_order_asked_for(packages: list[str]) -> None:
    result = compare(*packages, "--rounds", "0")
    assert result.exit_code == 0, result.output
    head, first, second = result.stdout.splitlines()
    assert head.split()[:2] == ["precision", "MB"]
    assert first.startswith("tiny-random")
    assert "+0.0%" in first  # a ratio of 0.99999999 is no loss below zero
    assert second.split()[:2] == ["small", "int4"]
    assert "0.2500" in second
    assert " - " in second  # no speed was measured


def test_packages_of_different_sources_are_not_compared_without_a_word(packages: list[str]) -> None:
    words = "Not all are made of one source: what each has lost is beside its own.\n"
    manifest = Manifest.load(Path(packages[1]))
    imported = {"format": "safetensors", "files": [{"sha256": "0" * 64}], "imported_from": manifest.source}
    dataclasses.replace(manifest, source=imported).save(Path(packages[1]))
    assert compare(*packages, "--rounds", "0").stderr == ""
    dataclasses.replace(manifest, source={"format": "edgelm", "files": [{"sha256": "1" * 64}]}).save(Path(packages[1]))
    assert compare(*packages, "--rounds", "0", "--json").stderr == words


def test_the_columns_stand_below_each_other_whatever_a_recipe_is_called(packages: list[str]) -> None:
    manifest = Manifest.load(Path(packages[1]))
    dataclasses.replace(manifest, precision="most-in-100-mb").save(Path(packages[1]))
    lines = compare(*packages, "--rounds", "0").stdout.splitlines()
    assert len(set(map(len, lines))) == 1


def test_the_columns_stand_below_each_other_whatever_script_a_name_is_in(packages: list[str]) -> None:
    wcswidth = pytest.importorskip("wcwidth").wcswidth
    manifest = Manifest.load(Path(packages[1]))
    for name in ("模型-ｱＡ", "e\u0301te\u0301-\u1112\u1161\u11ab", "الـنموذج"):
        dataclasses.replace(manifest, name=name).save(Path(packages[1]))
        lines = compare(*packages, "--rounds", "0").stdout.splitlines()
        assert len(set(map(wcswidth, lines))) == 1


def test_packages_of_one_name_are_told_apart_by_their_folders(packages: list[str], tmp_path: Path) -> None:
    manifest = Manifest.load(Path(packages[1]))
    dataclasses.replace(manifest, name="tiny-random").save(Path(packages[1]))
    result = compare(*packages, "--rounds", "0", "-o", str(tmp_path / "p.svg"))
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == packages
    assert all(name in (tmp_path / "p.svg").read_text() for name in packages)


def test_a_name_that_no_picture_can_hold_does_not_break_it(packages: list[str], tmp_path: Path) -> None:
    manifest = Manifest.load(Path(packages[1]))
    dataclasses.replace(manifest, name="a\x1b[31m\0 <b>\n").save(Path(packages[1]))
    assert compare(*packages, "--rounds", "0", "-o", str(tmp_path / "p.svg")).exit_code == 0
    texts = [node.text for node in ElementTree.parse(tmp_path / "p.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert texts[-1] == "a[31m <b>⏎"


def test_json_and_the_picture_hold_the_same_figures(packages: list[str], tmp_path: Path) -> None:
    result = compare(*packages, "--rounds", "0", "--json", "-o", str(tmp_path / "p.svg"))
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == ["tiny-random", "small"]
    assert rows[1]["mean_kl_divergence"] == 0.25
    assert rows[0]["answer_speed"] is None
    picture = (tmp_path / "p.svg").read_text()
    assert "tiny-random" in picture
    assert "small" in picture


def test_without_room_to_measure_speed_the_rest_is_compared(
    packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "PROMPT_TOKENS", 1024)
    result = compare(*packages, "--json")
    assert result.exit_code == 0, result.output
    assert [row["answer_speed"] for row in json.loads(result.stdout)] == [None, None]
    assert "has a context of 1024 tokens; measuring needs 1088. Its speeds are left out." in result.stderr


def test_speeds_are_measured_where_rounds_are_asked_for_and_what_cannot_be_measured_leaves_the_others_theirs(
    packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = speed.measure
    monkeypatch.setattr(speed, "_BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setattr(speed, "NEW_TOKENS", 4)

    def unless_small(folder: Path, options: SessionOptions, *, rounds: int) -> object:
        assert options.threads == 1
        if folder == Path(packages[1]):
            raise ConfigError("small has an encoder.")
        return measure(folder, options, rounds=rounds)

    monkeypatch.setattr(speed, "measure", unless_small)
    result = compare(*packages, "--rounds", "2", "--threads", "1", "--json")
    first, second = json.loads(result.stdout)
    assert first["answer_speed"] > 0
    assert first["prompt_speed"] > 0
    assert second["answer_speed"] is None
    assert result.stderr.count("small has an encoder. Its speeds are left out.") == 1


def test_a_package_without_figures_is_refused(packages: list[str]) -> None:
    manifest = Manifest.load(Path(packages[1]))
    dataclasses.replace(manifest, quality=None).save(Path(packages[1]))
    result = compare(*packages, "--rounds", "0")
    assert result.exit_code == 1
    assert "has no figures of quality in its manifest. Export it again with this edgelm." in result.stderr


def test_dots_keep_their_order_across_and_upwards() -> None:
    picture = draw_scatter("T", "x", "y", [Dot(x=1, y=0.1, label="a<"), Dot(x=2, y=0.001, label="b")])
    places = [line.split('"') for line in picture.splitlines() if line.startswith("<circle")]
    (ax, ay), (bx, by) = ((float(parts[3]), float(parts[5])) for parts in places)
    assert ax < bx
    assert ay < by  # larger costs are higher up, where y is smaller
    assert "a&lt;" in picture
    assert "<circle" in draw_scatter("T", "x", "y", [Dot(x=1, y=0.0, label="one alone")])
