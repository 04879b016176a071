"""The report: every number comes from the tables, nothing is hidden, and whatever is absent is said to be."""

import base64
import re
import subprocess
import sys
import zlib

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from matplotlib.collections import PolyCollection

from tests.made_analysis import made_settings, made_tables
from vmapens.analysis.tables import TABLES
from vmapens.errors import OutputError
from vmapens.report import sentences, write_report
from vmapens.report.canvas import inline_svg, style, write
from vmapens.report.explorer import payload
from vmapens.report.figures import PLOTS, SECTIONS
from vmapens.report.maps import read_map
from vmapens.report.selection import completed

# The tables without which a figure cannot be drawn.
SOURCES = {
    "scores": ["scores"],
    "agreement": ["consistency"],
    "grains": ["consistency"],
    "rank_maps": ["maps"],
    "rank_histograms": ["rank_histogram"],
    "maps": ["maps", "chosen"],
    "faithfulness_choices": ["faithfulness"],
    "rashomon": ["rashomon"],
}
PLOT = {plot.name: plot for plot in PLOTS}


def draw(name, tables, settings):
    with style(name):
        return PLOT[name].draw(completed(tables), settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """The page of an analysis that lacks nothing."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(made_tables(), made_settings(), path)
    return path.read_text()


def test_a_whole_analysis_shows_every_figure_in_the_order_of_the_argument(whole):
    assert re.findall(r'<figure id="figure-(\w+)">', whole) == [plot.name for plot in PLOTS]
    assert re.findall(r"Figure (\d+)\.", whole) == [str(i + 1) for i in range(len(PLOTS))]
    places = [whole.index(f"<h2>{title}</h2>") for title in SECTIONS.values()]
    answer, explorer, methods = (whole.index(f'<section id="{name}"') for name in ("answer", "explorer", "methods"))
    assert [answer, *places, explorer, methods] == sorted([answer, *places, explorer, methods])
    assert whole.count("is not shown; for it") == whole.count('<p class="missing" hidden>') == 1  # the explorer's


def test_the_page_needs_no_other_file(whole):
    """Addresses may name an SVG's namespace; nothing may be loaded."""
    html = re.sub(r'xmlns(:xlink)?="[^"]*"', "", whole)
    assert not re.search(r"https?://|@import|<script[^>]* src|<img", html)
    assert set(re.findall(r'(?:href|src)="([^#"][^"]{0,20})', html)) <= {"data:,", "data:image/png;base64"}
    assert "default-src 'none'" in html


def test_no_id_is_given_twice(whole):
    ids = re.findall(r'\bid="([^"]+)"', whole)
    assert len(ids) == len(set(ids))


def test_captions_have_no_gaps_left(whole):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", whole)
    assert len(captions) == len(PLOTS)
    assert not [caption for caption in captions if re.search(r"[{}]|None|nan", caption)]


def test_each_of_the_papers_seven_analyses_has_a_counterpart(whole):
    found = re.findall(r"Counterpart of the paper&?.*?\(analysis (\d)\)", whole)
    assert set(found) == set("1234567")


@pytest.mark.parametrize(("form", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_figures_are_files_too_and_nothing_else_is_left(tmp_path, form, start):
    some = set(TABLES) - {"permutation", "controls"}
    write_report(made_tables(empty=some), made_settings(), tmp_path / "report.html", figures=form)
    files = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in files] == [f"controls.{form}", f"permutation.{form}"]
    assert all(path.read_bytes().startswith(start) for path in files)


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_a_figure_has_the_same_bytes_each_time(tmp_path, form):
    contents = []
    for name in ("one", "two"):
        with style("drop"):
            figure = PLOT["drop"].draw(made_tables(), made_settings())
            write(figure, tmp_path / name, form)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert not re.search(rb"20\d\d-\d\d-\d\d|CreationDate", contents[0])


def test_the_page_has_the_same_bytes_each_time(tmp_path):
    """Also with the tables made anew, and other Matplotlib settings of the user's."""
    some = set(TABLES) - {"maps", "drop", "controls", "chosen"}
    write_report(made_tables(empty=some), made_settings(), tmp_path / "one.html")
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.hashsalt": "other"}):
        write_report(made_tables(empty=some), made_settings(), tmp_path / "two.html")
    assert (tmp_path / "one.html").read_text() == (tmp_path / "two.html").read_text()
    assert not (tmp_path / "figures").exists()


def test_the_users_matplotlib_settings_stay_as_they_are():
    before = dict(mpl.rcParams)
    draw("controls", made_tables(), made_settings())
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", list(PLOT))
def test_a_figure_whose_table_is_empty_is_left_out(name):
    for source in SOURCES.get(name, [name]):
        assert draw(name, made_tables(empty=(source,)), made_settings()) is None


def test_without_any_table_the_page_says_how_to_get_each_figure(tmp_path):
    write_report({}, made_settings(), tmp_path / "report.html", figures="png")
    html = (tmp_path / "report.html").read_text()
    assert html.count("is not shown; for it") == len(PLOTS) + html.count('<p class="missing"><b>The explorer')
    assert all(plot.title.replace("'", "&#x27;") in html for plot in PLOTS)
    assert "--attend-over uniform" in html
    assert "--design crossed" in html
    assert "--snapshots" in html
    assert not (tmp_path / "figures").exists()


def test_a_table_that_is_absent_is_like_one_that_is_empty():
    tables = made_tables(empty=("controls", "decomposition"))
    some = {name: frame for name, frame in tables.items() if frame.height}
    assert sentences(some, made_settings()) == sentences(tables, made_settings())


def test_attention_over_steps_alone_of_a_task_with_classes(tmp_path):
    """No maps then, but all else, and the explorer with one row."""
    shape = {"attention_features": 1, "kind": "multiclass"}
    tables, settings = made_tables(**shape), made_settings(**shape)
    absent = {"rank_maps", "maps", "weights"}
    assert {name for name in PLOT if draw(name, tables, settings) is None} == absent
    elsewhere = ("consistency", "measured", "drop", "held", "rashomon", "rank_histogram", "epochs", "learned_mask")
    shown = {name: frame for name, frame in tables.items() if name not in elsewhere}
    write_report(shown, settings, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "balanced accuracy" in html
    assert {stay["width"] for stay in payload(tables, settings, budget=10**6)["stays"]} == {1}


def test_two_variants_and_one_stay_are_enough():
    size = {"variants": 2, "stays": 1, "steps": 4, "features": 4}
    tables, settings = made_tables(**size), made_settings(**size)
    assert [name for name in PLOT if draw(name, tables, settings) is None] == []


def test_missing_numbers_leave_a_gap_and_not_an_error():
    """Null and NaN where an interval, a reference or a p-value could not be had."""
    tables = made_tables()
    tables["consistency"] = tables["consistency"].with_columns(
        pl.when(pl.col("quantity") == "cross_patient").then(None).otherwise(pl.col("estimate")).alias("estimate"),
        low=pl.lit(None, pl.Float64),
        high=pl.lit(float("nan"), pl.Float64),
    )
    for table in ("controls", "faithfulness", "rashomon", "epochs", "decomposition", "reliability", "permutation"):
        tables[table] = tables[table].with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))
    tables["good"] = tables["good"].with_columns(p_value=pl.lit(None, pl.Float64))
    assert [name for name in PLOT if draw(name, tables, made_settings()) is None] == []
    assert "takes more than one stay" in sentences(tables, made_settings())[1]


def test_no_limit_of_an_axis_hides_a_variant():
    tables = made_tables()
    far = pl.when(pl.col("variant") == 3).then(0.2).otherwise(pl.col("value"))
    tables["scores"] = tables["scores"].with_columns(value=far)
    figure = draw("scores", tables, made_settings())
    for histogram, trace in zip(figure.axes[:2], figure.axes[2:], strict=True):
        assert sum(bar.get_height() for bar in histogram.patches) == 12
        assert histogram.get_xlim()[0] < 0.2
        assert trace.get_ylim()[0] < 0.2


def test_a_failed_variant_is_counted_and_not_drawn():
    tables = made_tables()
    failed = pl.col("variant") == 3
    tables["scores"] = tables["scores"].with_columns(
        value=pl.when(failed).then(0.75).otherwise(pl.col("value")),  # of its best epoch
        status=pl.when(failed).then(pl.lit("failed")).otherwise(pl.col("status")),
    )
    settings = made_settings(failed=1, variants=11)
    assert "the 11 variants" in sentences(tables, settings)[0]
    assert "1 more failed" in sentences(tables, settings)[0]
    figure = draw("scores", tables, settings)
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 11
    assert 3 not in figure.axes[2].lines[0].get_xdata()
    assert len(draw("reliability", tables, settings).axes[0].lines[0].get_xdata()) == 11


def test_what_as_many_at_random_reach_is_a_band():
    tables = made_tables()
    panel = draw("rashomon", tables, made_settings()).axes[0]
    part = tables["rashomon"].filter(measure="overlap", k=made_settings()["map_k"])
    (band,) = [shape for shape in panel.collections if isinstance(shape, PolyCollection)]
    drawn = set(band.get_paths()[0].vertices[:, 1].tolist())
    assert drawn == {*part["random_low"], *part["random_high"]}


def test_uniform_attention_is_not_told_to_train_more():
    settings = made_settings(form="uniform")
    _, *rest = sentences({}, settings)
    assert "uniform attention has nothing to compare" in rest[0]
    assert not [text for text in rest if "train" in text]


def test_maps_of_fewer_stays_than_were_analysed_are_said_to_be(tmp_path):
    tables, settings = made_tables(stays=5), made_settings(stays=5)
    first = tables["samples"]["sample"][:2].to_list()
    tables["maps"] = tables["maps"].filter(pl.col("sample").is_in(first))
    found = payload(tables, settings, budget=10**6)
    assert [stay["name"] for stay in found["stays"]] == first
    assert found["notes"] == ["Maps are of 2 of the 5 stays: first those with saved attention."]
    write_report(tables, settings, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert found["notes"][0] in html
    assert re.findall(r'<figure id="figure-(\w+)">', html) == [plot.name for plot in PLOTS]


def test_the_agreement_figure_stands_where_the_table_says():
    tables = made_tables()
    at = {"attribution": "attention", "grain": "cell", "cells": "all", "over": "stays", "measure": "spearman"}
    part = tables["consistency"].filter(*(pl.col(name) == value for name, value in at.items()))
    wanted = dict(
        part.filter(pl.col("quantity").is_in(["value", "cross_patient"])).select("quantity", "estimate").rows()
    )
    panel = draw("agreement", tables, made_settings()).axes[0]
    row = [label.get_text() for label in panel.get_yticklabels()].index("Spearman")
    drawn = {line.get_xdata()[0] for line in panel.lines if list(line.get_ydata()) == [row]}
    assert set(wanted.values()) <= drawn
    (bar,) = [patch for patch in panel.patches if abs(patch.get_y() + patch.get_height() / 2 - row) < 1e-9]
    assert bar.get_x() == pytest.approx(wanted["cross_patient"])
    assert bar.get_x() + bar.get_width() == pytest.approx(wanted["value"])


def test_names_of_all_kinds_are_text_and_nothing_more(tmp_path):
    """Markup, a dollar (mathematics to Matplotlib), braces, and a script that its font lacks."""
    nasty = "</script><script>alert(1)</script> $x_ {k} \u5fc3\u7387"
    settings = made_settings(run=nasty, task=nasty, licence=nasty, notes=[nasty], command=["vmapens", nasty])
    for feature in settings["features"]:
        feature["feature"] = feature["unit"] = nasty
    tables = made_tables(empty=set(TABLES) - {"maps", "chosen", "samples", "permutation"})
    for name, column in (("permutation", "outcome"), ("samples", "outcome")):
        tables[name] = tables[name].with_columns(pl.lit(nasty).alias(column))
    write_report(tables, settings, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.count("<script") == 2
    assert html.count("alert(1)") > 5
    assert '<figure id="figure-maps">' in html


def test_a_place_where_nothing_can_be_written_is_an_error_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report({}, made_settings(), tmp_path / "file" / "report.html")


def unpacked(plane, shape):
    raw = np.frombuffer(zlib.decompress(base64.b64decode(plane["data"])), np.uint8).astype(int)
    planes = raw.reshape(plane["bytes"], -1)
    return (planes * 256 ** np.arange(plane["bytes"])[:, None]).sum(axis=0).reshape(shape[::-1]).T


@pytest.mark.parametrize(("size", "bound"), [({}, 1e-4), ({"steps": 150, "features": 140}, 0.02)])
def test_the_explorer_gives_back_what_the_maps_hold(size, bound):
    """A fine coding for few cells; for many, an error of under 2 % of the largest, less for small values."""
    tables, settings = made_tables(stays=1, **size), made_settings(stays=1, **size)
    (stay,) = payload(tables, settings, budget=10**7)["stays"]
    assert [plane["kind"] for plane in stay["planes"]] == ["mean", "sd", "held", "value", "measured"] + ["variant"] * 4
    for plane in stay["planes"][:5]:
        wanted = read_map(tables, settings, sample=stay["name"], kind=plane["kind"])
        codes = unpacked(plane, wanted.shape)
        if plane["kind"] == "value":
            low, high = np.array(plane["low"]), np.array(plane["high"])
            got = np.where(codes == 0, np.nan, low + (codes - 1) / 65534 * (high - low))
            np.testing.assert_allclose(got, wanted, atol=1e-3)
        elif plane["kind"] in ("held", "measured"):
            np.testing.assert_allclose(codes / 255, wanted, atol=1 / 500)
        else:
            got = plane["largest"] * (codes / plane["most"]) ** 2
            np.testing.assert_allclose(got, wanted, atol=bound * wanted.max())


def test_the_explorers_table_names_the_cells_that_most_variants_hold():
    tables, settings = made_tables(), made_settings()
    stay = payload(tables, settings, budget=10**6)["stays"][1]
    held, mean, value, measured = (
        read_map(tables, settings, sample=stay["name"], kind=kind) for kind in ("held", "mean", "value", "measured")
    )
    shares = [row[2] for row in stay["top"]]
    assert shares == sorted(shares, reverse=True)
    assert shares == pytest.approx(np.sort(held.ravel())[::-1][:20], rel=1e-5)
    for step, feature, *row in stay["top"]:
        wanted = (held[step, feature], mean[step, feature], value[step, feature], measured[step, feature])
        assert [np.nan if cell is None else cell for cell in row] == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_what_does_not_fit_is_left_out_and_said():
    tables, settings = made_tables(stays=6), made_settings(stays=6)
    whole = payload(tables, settings, budget=10**6)
    assert len(whole["stays"]) == 6
    assert whole["notes"] == []
    cost = sum(len(plane["data"]) for stay in whole["stays"] for plane in stay["planes"])
    some = payload(tables, settings, budget=cost // 2)
    assert sum(len(plane["data"]) for stay in some["stays"] for plane in stay["planes"]) <= cost // 2
    assert 1 <= len(some["stays"]) <= 6
    assert sum(plane["kind"] == "variant" for plane in some["stays"][0]["planes"]) == 4
    assert some["notes"]
    nothing = payload(tables, settings, budget=0)
    assert nothing["stays"] == []
    assert "0 of the 6 stays" in nothing["notes"][0]


@pytest.mark.slow
def test_at_the_papers_size_the_page_stays_under_5_mb(tmp_path):
    size = {"stays": 16, "variants": 1000, "steps": 288, "features": 231}
    write_report(made_tables(**size), made_settings(**size), tmp_path / "report.html")
    assert 3_000_000 < (tmp_path / "report.html").stat().st_size < 5_000_000


def test_many_points_and_lines_are_pixels():
    """Ten times the stays cost no ten times the bytes."""
    sizes = []
    for stays in (20, 200):
        tables, settings = made_tables(stays=stays, empty=("maps",)), made_settings(stays=stays)
        for name in ("drop", "measured"):
            with style(name):
                sizes.append(len(inline_svg(PLOT[name].draw(completed(tables), settings), name, "")))
    assert sizes[2] < 2 * sizes[0]
    assert sizes[3] < 2 * sizes[1]


def test_the_answer_needs_no_matplotlib():
    """It is printed after each analysis, and Matplotlib takes a second to import."""
    code = "import sys, vmapens.report, vmapens.report.sentences; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_style_of_a_figure_reaches_beyond_it(whole):
    assert whole.count("<style") == 1
