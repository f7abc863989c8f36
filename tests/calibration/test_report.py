"""The calibration report, from figures that are known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from llamavid.calibration.report import (
    KEPT,
    Distribution,
    GraphFigure,
    ModuleFigure,
    ObserverFigure,
    Outlier,
    Report,
    SpeedFigure,
    table,
    worst_modules,
    write_report,
)
from llamavid.calibration.report_plots import pictures
from llamavid.errors import UsageError

OBSERVERS = {"absmax": ObserverFigure(40.0, 0.02), "mse": ObserverFigure(12.5, 0.004)}


def module(
    name: str, error: float | None, *, format: str = "int8", outliers: tuple[Outlier, ...] = ()
) -> ModuleFigure:
    threshold = None if format == KEPT else 12.5
    return ModuleFigure(
        "vision", name, format, (257, 1408, 6144), error, 40.0, threshold, outliers, OBSERVERS
    )


@pytest.fixture
def report() -> Report:
    modules = (
        module("blocks.0.mlp.fc1", 0.002),
        module("blocks.0.mlp.fc2", 0.3, format=KEPT, outliers=(Outlier(301, 57.25),)),
        module("blocks.1.mlp.fc1", None),
        module("head<script>", 0.001),
    )
    counts = np.zeros(2048)
    counts[[0, 5, 1000]] = 1000, 20, 1
    channels = np.linspace(40, 1, 1408, dtype=np.float32)
    seen = Distribution(
        "vision", "blocks.0.mlp.fc2", np.linspace(0, 64, 2049), counts, channels, channels / 2
    )
    return Report(
        {"checkpoint": "a & b", "clips": "16"},
        "mse",
        (GraphFigure("vision", "int8", "frame tokens", 4, 1, 0.75, 17_301_504, 8_675_328, 0.0123, None),),
        modules,
        (SpeedFigure((257, 1408, 6144), "int8", 3, 36.0, 12.0),),
        "fp8 is not timed",
        (seen,),
    )


def test_the_table_tells_what_is_rounded_what_costs_most_and_what_is_faster(report: Report) -> None:
    graph, _, _, *worst = table(report).splitlines()[1:]
    assert graph.split() == ["vision", "int8", "3/4", "75.0%", "17.3", "MB", "8.7", "MB", "1.23e-02"]
    assert worst[0].split() == ["vision", "blocks.0.mlp.fc2", "kept", "3.00e-01"]
    assert worst[-2].split() == ["[257,", "1408,", "6144]", "36.000", "ms", "int8", "12.000", "ms", "3.00x"]
    assert worst[-1] == "fp8 is not timed"
    assert [one.module for one in worst_modules(report.modules, 2)] == [
        "blocks.0.mlp.fc2",
        "blocks.0.mlp.fc1",
    ]


def test_three_files_are_written_that_need_no_other(report: Report, tmp_path: Path) -> None:
    files = write_report(report, tmp_path)
    assert [file.name for file in files] == ["report.json", "report.html", "report.png"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(report.document()))
    assert Image.open(files[2]).size[0] >= 1000


def test_the_page_names_outliers_and_shows_a_file_s_own_words_as_text(report: Report, tmp_path: Path) -> None:
    page = write_report(report, tmp_path)[1].read_text()
    assert "head&lt;script&gt;" in page
    assert "head<script>" not in page
    assert re.search(r">301</td><td data-value=\"57.25\">57.2", page)
    rows = ElementTree.fromstring(
        re.findall(r"<table.*?</table>", page, re.DOTALL)[-1].replace(' data-value=""', "")
    ).findall(".//tbody/tr")
    assert [row.get("class") for row in rows] == [None, "kept", None, None]


def test_every_picture_is_drawn_and_the_same_figures_draw_the_same(report: Report) -> None:
    drawn = pictures(report)
    assert list(drawn) == ["depth vision", "inputs", "channels", "speed"]
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in drawn.values())
    assert pictures(report) == drawn


def test_a_report_without_measured_errors_and_speeds_is_one_too(report: Report, tmp_path: Path) -> None:
    bare = tuple(replace(one, error=None, observers={}) for one in report.modules)
    write_report(replace(report, modules=bare, speed=(), distributions=(), unmeasured=""), tmp_path)
    assert "data:image" not in (tmp_path / "report.html").read_text()


def test_a_folder_that_cannot_be_written_is_one_line(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(report, tmp_path / "file")
