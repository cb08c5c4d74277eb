"""The page of a run: what it says, that nothing on it can run, and how it behaves in a browser."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classify.report.charts import (
    Axes,
    RowSeries,
    Series,
    line_chart,
    reliability_chart,
    row_chart,
)
from classify.report.page import Page, Section, Table, interval_cells, number_cell, render
from classify.report.run_page import write_report
from classify.report.scales import Scale
from classify.report.tables import TextTable, as_block, text_cells
from classify.report.thumbnails import find_images, thumbnail
from classify.results import runs

HOSTILE = '"><img src=x onerror="document.title=1"><script>document.title=1</script>'
CLASSES = ("cat", HOSTILE, "owl")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "photos").mkdir()
    Image.new("RGB", (300, 200), "teal").save(folder / "photos" / "a.jpg")
    ids = ["a.jpg", "../secret.jpg", HOSTILE, "b.jpg", "c.jpg", "d.jpg"]
    Image.new("RGB", (30, 20), "red").save(folder / "secret.jpg")
    labels = [CLASSES[i] for i in (0, 1, 2, 0, 1, 2)]
    predicted = [CLASSES[i] for i in (1, 0, 2, 0, 1, 0)]
    run = folder / "run"
    run.mkdir()
    runs.write_test_predictions(
        run,
        {
            "id": ids,
            "class": labels,
            "dense": predicted,
            "dense_confidence": ["0.9", "0.95", "0.8", "0.7", "0.99", "0.5"],
        },
    )
    runs.write_history(
        run,
        {
            "loss": [1.0, 0.5],
            "accuracy": [0.5, 0.75],
            "val_loss": [1.1, 0.7],
            "val_accuracy": [0.5, 0.625],
        },
    )
    header = ["rank", "split", "id", "class", "suggested_class", "suggested_confidence"]
    runs.write_table(
        run / runs.SUSPECTS_FILE, header, [(1, "train", "a.jpg", "cat", HOSTILE, 0.875)]
    )
    runs.write_table(
        run / runs.SWEEP_FILE,
        ["rank", "learning_rate"],
        [(1, 0.001), (2, 0.1), (3, 0.02)],
    )
    runs.write_metrics(run, facts(str(folder / "photos")))
    write_report(run, f"nightly {HOSTILE}")
    return run


def facts(source: str) -> dict[str, Any]:
    figures = {
        "validation_accuracy": 0.625,
        "validation_log_loss": 0.7,
        "test_accuracy": 0.5,
        "test_accuracy_ci95": [0.1876, 0.8124],
        "temperature": 1.25,
        "trainable_parameters": 3843,
    }
    return {
        "kind": "head",
        "dense": figures,
        "selected": "dense",
        "classes": list(CLASSES),
        "n_train": 1000,
        "n_validation": 8,
        "n_test": 6,
        "test_scorings": {"first": 3, "last": 4},
        "recipe": {"backbone": "mobilenet_v2", "image_size": 96},
        "provenance": {"source": source},
        "versions": {"numpy": "2.0"},
    }


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / runs.REPORT_FILE).read_text(encoding="utf-8")


def test_the_page_says_what_the_files_say(text: str) -> None:
    for said in ("0.5000 (0.1876 to 0.8124)", "3,843", "1.250", "1,000 images", "3 of 6 are wrong"):
        assert said in text
    assert "mobilenet_v2 at 96 pixels" in text


def test_mistakes_come_most_confident_first(text: str) -> None:
    part = text.partition("Most confident mistakes</h2>")[2]
    ids = re.findall(r"<figcaption><span>(.*?)</span>", part)[:3]
    assert [html.unescape(one) for one in ids] == ["../secret.jpg", "a.jpg", "d.jpg"]


def test_names_of_files_and_classes_are_text_wherever_they_stand(text: str) -> None:
    assert HOSTILE not in text
    assert len(re.findall(r"<script", text)) == 1
    assert "<img src=x" not in text


def test_images_at_hand_are_shown_and_none_from_outside_the_source(folder: Path) -> None:
    find = find_images(str(folder.parent / "photos"))
    assert thumbnail("a.jpg", find).startswith("data:image/jpeg;base64,")
    assert thumbnail("../secret.jpg", find) == ""
    assert thumbnail("gone.jpg", find) == ""
    assert thumbnail(HOSTILE, find_images("no such folder")) == ""


def test_a_thumbnail_is_small_and_keeps_the_shape(folder: Path, tmp_path: Path) -> None:
    from base64 import b64decode
    from io import BytesIO

    address = thumbnail("a.jpg", find_images(str(folder.parent / "photos")))
    image = Image.open(BytesIO(b64decode(address.partition(",")[2])))
    assert image.size == (96, 64)


def test_a_run_without_a_test_says_so(tmp_path: Path) -> None:
    told = facts("photos")
    told["dense"] |= {"test_accuracy": None, "test_accuracy_ci95": None}
    runs.write_metrics(tmp_path, told)
    write_report(tmp_path, "r")
    assert "the test was not scored" in (tmp_path / runs.REPORT_FILE).read_text()


def test_a_scale_is_linear_or_logarithmic_in_the_values() -> None:
    assert [Scale(0, 10, 100, 200)(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert [Scale(1, 100, 0, 50, is_log=True)(value) for value in (1, 10, 100)] == [0, 25, 50]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0.83, 0.87, ["0.83", "0.84", "0.85", "0.86", "0.87"]),
        (1, 5, ["1", "2", "3", "4", "5"]),
        (0, 23_000, ["0", "5,000", "10,000", "15,000", "20,000"]),
    ],
)
def test_ticks_are_round_values(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in Scale(low, high, 0, 1).ticks()] == labels


def test_ticks_of_a_logarithmic_scale_are_decades() -> None:
    labels = [label for _, label in Scale(10, 4000, 0, 100, is_log=True).ticks()]
    assert labels == ["10", "100", "1,000"]


def points(text: str) -> list[tuple[float, ...]]:
    """Return the points of SVG's attribute."""
    return [tuple(map(float, point.split(","))) for point in text.split()]


def test_a_band_goes_around_its_line() -> None:
    series = Series("mean", [0, 1], [0.5, 0.5], [0.25, 0.25], [0.75, 0.75])
    chart = line_chart(Axes("t", "x", "y", y_range=(0, 1)), [series])
    (mark,) = chart.marks
    (line,), (band,) = map(points, mark.lines), map(points, mark.bands)
    middle = (chart.top + chart.bottom) / 2
    quarter = (chart.bottom - chart.top) / 4
    assert [y for _, y in line] == [middle, middle]
    assert [y for _, y in band] == [middle - quarter] * 2 + [middle + quarter] * 2


def test_a_band_has_a_gap_where_its_bounds_are_not_known() -> None:
    low = [0.1, 0.2, float("nan"), 0.3]
    series = Series("mean", [0, 1, 2, 3], [0.5] * 4, low, [0.9] * 4)
    (mark,) = line_chart(Axes("t", "x", "y"), [series]).marks
    assert [len(points(band)) for band in mark.bands] == [4, 2]
    assert len(points(mark.lines[0])) == 4


def test_a_row_has_a_dot_and_a_whisker_on_the_common_scale() -> None:
    none = float("nan")
    series = RowSeries("test", [0.5, none, 0.9], [0.4, none, 0.7], [0.6, none, 1.0])
    chart = row_chart("t", "x", ["a", "b", "c"], [series])
    assert [name for _, name in chart.rows] == ["a", "b: none", "c"]
    (mark,) = chart.marks
    whiskers = [points(line) for line in mark.lines]
    for dot, (left, right), share in zip(mark.dots, whiskers, (0.5, 2 / 3), strict=True):
        assert (dot.x - left[0]) / (right[0] - left[0]) == pytest.approx(share, abs=0.01)
        assert left[1] == right[1] == dot.y
    assert whiskers[1][1][0] - whiskers[0][0][0] == pytest.approx(
        6 * (whiskers[0][1][0] - whiskers[0][0][0]) / 2, abs=0.5
    )
    assert chart.rows[2][0] < mark.dots[1].y < chart.bottom


def test_colors_of_many_series_are_used_again() -> None:
    series = [Series(str(n), [0, 1], [n, n]) for n in range(9)]
    css = [mark.css for mark in line_chart(Axes("t", "x", "y"), series).marks]
    assert (css[0], css[7], css[8]) == ("series-1", "series-8", "series-1")


def test_numbers_of_a_column_have_as_many_decimals_where_few_suffice() -> None:
    def shown(*texts: str) -> list[str]:
        return [cell.text for cell in text_cells(texts)]

    assert shown("0.775", "0.65783212", "1", "") == ["0.7750", "0.6578", "1.0000", ""]
    assert shown("0.00141", "0.0008949", "0.1") == ["0.00141", "0.0008949", "0.1"]
    assert shown("3", "12") == ["3", "12"]
    assert shown("ridge", "2") == ["ridge", "2"]


def test_a_figure_and_its_interval_are_one_column_and_long_texts_come_last() -> None:
    header = ("model", "hyperparameters", "ece", "ece_low", "ece_high", "test_low")
    rows = (("a", '{"C": 1}', "0.2", "0.1", "0.4", "7"), ("b", "{}", "", "", "", "8"))
    table = as_block(TextTable(header, rows), "t")
    assert table.columns == ("model", "ece", "test low", "hyperparameters")
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [
        ["a", "0.2000 (0.1000 to 0.4000)", "7", '{"C": 1}'],
        ["b", "–", "8", "{}"],
    ]


def test_a_column_of_numbers_may_lack_some() -> None:
    rows = ((number_cell(1.0), number_cell(None)), (number_cell(None), number_cell(None)))
    assert Table("t", ("some", "none"), rows).numeric == (True, False)


def test_bins_of_more_rows_are_larger_by_area() -> None:
    chart = reliability_chart([0.2, 0.9], [0.2, 0.9], [100, 400])
    small, large = chart.marks[0].dots
    assert large.radius / small.radius == pytest.approx(2, abs=0.02)


def test_bars_of_a_column_share_one_scale() -> None:
    first, second, none = interval_cells([(0.1, 0.2, 0.3), (0.2, 0.4, 0.5), None])
    assert (first.bar.low, first.bar.value, first.bar.high) == (0, 0.25, 0.5)
    assert (second.bar.low, second.bar.value, second.bar.high) == (0.25, 0.75, 1)
    assert none.bar is None


def test_a_page_without_sections_renders() -> None:
    assert "<h1>empty</h1>" in render(Page("empty", "", (), (Section("none", ()),)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: `make browser` installs Debian's")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.requests, page.problems = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto((folder / runs.REPORT_FILE).as_uri())
    yield page
    context.close()


def test_in_a_browser_nothing_is_fetched_and_no_name_runs(page: Any) -> None:
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in page.requests if url.startswith("file:")]) == 1
    assert page.problems == []
    assert page.title().startswith("Run nightly")


def test_in_a_browser_a_script_put_into_the_page_is_refused(page: Any, folder: Path) -> None:
    text = (folder / runs.REPORT_FILE).read_text(encoding="utf-8")
    changed = folder.parent / "changed.html"
    changed.write_text(text.replace("</main>", "<script>document.title='ran'</script></main>"))
    page.goto(changed.as_uri())
    assert page.title() != "ran"


def test_in_a_browser_a_phone_never_scrolls_sideways(page: Any) -> None:
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]


def test_in_a_browser_a_table_is_sorted_from_the_keyboard(page: Any) -> None:
    heading = page.get_by_role("button", name="learning rate")
    heading.focus()
    page.keyboard.press("Enter")
    table = page.locator("table", has=heading)
    cells = table.locator("tbody tr td:nth-child(2)")
    assert cells.all_inner_texts() == ["0.001", "0.020", "0.100"]
    assert table.locator("th[aria-sort=ascending]").count() == 1
    page.keyboard.press("Enter")
    assert cells.all_inner_texts() == ["0.100", "0.020", "0.001"]
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_in_a_browser_long_names_stay_within_a_chart_of_rows(page: Any, tmp_path: Path) -> None:
    names = ["efficientnet_v2_b0_of_the_second_photos:kernel_ridge", HOSTILE]
    chart = row_chart("t", "x", names, [RowSeries("test", [0.5, 0.6], [0.4] * 2, [0.7] * 2)])
    cells = tuple((number_cell(n),) for n in range(60))
    blocks = (chart, Table("many rows", ("n",), cells))
    path = tmp_path / "rows.html"
    path.write_text(render(Page("rows", "", (), (Section("s", blocks),))), encoding="utf-8")
    page.goto(path.as_uri())
    assert page.title() == "rows"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = "[...document.querySelectorAll('.chart .label')].map(one => one.getBBox())"
    assert max(page.evaluate(f"{boxes}.map(one => one.x + one.width)")) <= chart.width
    assert page.locator(".tall").bounding_box()["height"] < 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_text_stands_out_in_both_schemes(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    colors = page.evaluate(
        """() => [...document.querySelectorAll("h1, .lead, td, dt, .tick, .missing")].map(one => {
            const style = getComputedStyle(one);
            return one.closest("svg") ? style.fill : style.color;
        })"""
    )
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert {contrast(color, paper) >= 4.5 for color in colors} == {True}


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two CSS colors, as WCAG 2.2 defines it."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    shares = np.array([float(one) for one in re.findall(r"[\d.]+", color)[:3]]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
