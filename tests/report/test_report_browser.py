"""The page about a run in a real browser: nothing fails, nothing is fetched, the controls work.

Screenshots are saved in tests/artifacts for inspection.
"""

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from associative_transformer.analysis import load_analysis
from associative_transformer.analysis.storage import (
    read_completion,
    save_result,
    write_completion,
)
from associative_transformer.report import write_comparison, write_report
from making.reports import CLASSES, planted_basins, planted_tokens

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 800}

Visit = Callable[..., Page]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"]  # Chromium refuses to run as root with a sandbox
        yield playwright.chromium.launch(executable_path=BROWSER, args=arguments)


@pytest.fixture(scope="module")
def pages(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a report of planted numbers, and a comparison."""
    runs = shutil.copytree(root, tmp_path_factory.mktemp("browser") / "runs")
    analysis = load_analysis(runs / "ait")
    assert analysis is not None and analysis.selection is not None
    same = np.tile(np.eye(4), (2, 2, 1, 1))
    same[:, :, 0, 1] = same[:, :, 1, 0] = 0.95
    selection = replace(
        analysis.selection,
        usage=np.array([[0.2, 0.5, 0.01, 0.29]] * 2),  # the third is dead
        overlap=same,  # the second is a duplicate of the first
        entropy=np.array([[[3.0, 2.0, 1.0, 2.5]] * 2] * 2),
    )
    for name, planted in (
        ("selection", selection),
        ("basins", planted_basins()),
        ("reconstruction", planted_tokens()),
    ):
        save_result(planted, runs / "ait" / "analysis", name)
    completion = read_completion(root / "ait" / "analysis")
    assert completion is not None
    names = {Path(file).stem for file in completion.files}
    write_completion(runs / "ait" / "analysis", names, completion.data)
    return {
        "report": write_report(runs / "ait"),
        "vit": write_report(runs / "vit"),
        "comparison": write_comparison(runs / "ait", runs / "vit"),
    }


@dataclass
class Opened:
    """An open page and the problems that it caused."""

    page: Page
    problems: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Browser, pages: dict[str, Path]) -> Iterator[Visit]:
    """Return a function that opens a page; check that nothing fails or is fetched."""
    opened: list[Opened] = []

    def visit(name: str, viewport: dict[str, int] | None = None, **settings: Any) -> Page:  # noqa: ANN401
        address = pages[name].as_uri()
        page = browser.new_context(viewport=viewport or DESKTOP, **settings).new_page()
        page.set_default_timeout(120_000)  # for a busy machine
        visited = Opened(page)
        page.on("console", lambda m: visited.problems.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: visited.problems.append(str(error)))

        def note(request: Any) -> None:  # noqa: ANN401
            if request.url.partition("#")[0] != address and not request.url.startswith("data:"):
                visited.problems.append(request.url)

        page.on("request", note)
        page.goto(address)
        opened.append(visited)
        return page

    yield visit
    for each in opened:
        each.page.context.close()
    assert [problem for each in opened for problem in each.problems] == []


def visible(page: Page, selector: str) -> list[str]:
    return [
        element.inner_text() for element in page.locator(selector).all() if element.is_visible()
    ]


def check_sizes(page: Page, width: int) -> int:
    """Check that every visible chart is within the viewport; return the number of charts."""
    boxes = page.evaluate(
        "[...document.querySelectorAll('.plot > svg')].filter((e) => e.clientWidth)"
        ".map((e) => [e.getBoundingClientRect(), e.viewBox.baseVal.width, e.ariaLabel])"
        ".map(([box, width, label]) => [box.left, box.right, box.height, width, label])"
    )
    figures = page.locator("figure:not([hidden])").count()
    assert len(boxes) == figures
    for left, right, height, drawn, label in boxes:
        assert 0.8 < (right - left) / drawn < 1.1  # so that texts have their intended size
        assert len(label) > 3
        assert 0 <= left < right - 100 and right <= width and height > 40
    return len(boxes)


@pytest.mark.parametrize("name", ["report", "vit", "comparison"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_charts_fit_the_viewport_and_no_page_scrolls_sideways(
    name: str, viewport: dict[str, int], visit: Visit
) -> None:
    page = visit(name, viewport)
    assert check_sizes(page, viewport["width"]) >= 6
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_every_option_shows_its_own_charts(visit: Visit) -> None:
    page = visit("report")
    seen = set()
    for layer in ("0", "1"):
        page.select_option("#beta-layer", layer)
        for beta in ("0", "1", "2"):
            page.locator("#beta-beta").fill(beta)
            check_sizes(page, DESKTOP["width"])
            titles = visible(page, "#beta figcaption")
            assert all(f"layer {int(layer) + 1}" in title for title in titles)
            chosen = [title for title in titles if "β = " in title]
            assert len(chosen) == (3 if beta == "1" else 4)  # tokens are stored for two of three
            assert seen.isdisjoint(chosen)
            seen |= set(chosen)
    before = visible(page, "#memory figcaption")
    page.select_option("#memory-layer", "1")
    after = visible(page, "#memory figcaption")
    assert before != after and {"Effective rank", "Distinct priors"} <= {*before} & {*after}


def cards(page: Page) -> list[int]:
    return [int(card.get_attribute("data-prior")) for card in page.locator(".card").all()]


def test_cards_are_sorted_and_filtered(visit: Visit) -> None:
    page = visit("report")
    assert cards(page) == [0, 1, 2, 3]
    assert visible(page, ".card .badge") == ["duplicate", "dead"]
    page.select_option("#priors-order", "usage")
    assert cards(page) == [1, 3, 0, 2]
    page.select_option("#priors-order", "entropy")
    assert cards(page) == [2, 1, 3, 0]
    for kind, kept in {
        "dead": [2],
        "duplicate": [1],
        "plain": [3, 0],
        "all": [2, 1, 3, 0],
    }.items():
        page.select_option("#priors-show", kind)
        assert cards(page) == kept
        assert visible(page, "#priors [role=status]") == [f"{len(kept)} of 4 priors"]
    page.fill("#priors-usage", "20")
    assert cards(page) == [1, 3, 0]
    page.fill("#priors-entropy", "2.2")
    assert cards(page) == [1]


def test_a_card_shows_the_winners_of_the_chosen_head(visit: Visit, pages: dict[str, Path]) -> None:
    selection = load_analysis(pages["report"].parent).selection
    page = visit("report")
    page.select_option("#priors-layer", "1")
    page.select_option("#priors-head", "1")
    item, patch = selection.winners[1, 1, 3, 0]
    label = page.locator(".card").nth(3).locator("svg").first.get_attribute("aria-label")
    assert label.startswith(f"Test image {item + 1}: ")
    assert label.endswith(f"patch in row {patch // 2 + 1}, column {patch % 2 + 1}")
    frame = page.locator(".card").nth(3).locator("svg").first.locator("rect").first
    assert float(frame.get_attribute("x")) == 50 * (patch % 2) - 2
    assert float(frame.get_attribute("y")) == 50 * (patch // 2) - 2


def test_a_click_on_an_image_shows_it_and_its_energies(visit: Visit) -> None:
    page = visit("report")
    before = visible(page, "#images .view p")
    line = page.locator("#images .view figure path[fill=none]").last.get_attribute("d")
    page.locator("#images .picker label").nth(6).click()
    assert visible(page, "#images .view p") != before
    assert visible(page, "#images .view p")[0].startswith("Test image 7: ")
    assert visible(page, "#images .picker legend") == ["Test image"]
    assert page.locator("#images .view figure path[fill=none]").last.get_attribute("d") != line
    page.locator("#images .view summary").click()
    assert len(visible(page, "#images .view tbody tr")) == 4
    page.keyboard.press("Tab")
    page.locator("#images .picker input").nth(6).focus()
    page.keyboard.press("ArrowRight")
    assert visible(page, "#images .view p")[0].startswith("Test image 8: ")


def test_small_pictures_show_what_each_prior_of_a_layer_and_head_takes(
    visit: Visit, pages: dict[str, Path]
) -> None:
    taken = load_analysis(pages["report"].parent).selection.taken
    page = visit("report")
    assert page.locator("#images-head").input_value() == "2"  # all heads
    page.locator("#images .picker label").nth(3).click()
    for layer, head, heads in (("0", "2", [0, 1]), ("1", "0", [0])):
        page.select_option("#images-layer", layer)
        page.select_option("#images-head", head)
        pictures = page.locator("#images .atlas svg")
        assert pictures.count() == 4
        for prior in range(4):
            is_taken = taken[int(layer), heads, prior, 3] > 0
            number = int(is_taken.any(axis=0).sum())
            words = f"; prior {prior + 1} takes {number} {'patch' if number == 1 else 'patches'}"
            assert pictures.nth(prior).get_attribute("aria-label").endswith(words)
            shades = (
                pictures.nth(prior)
                .locator("rect")
                .evaluate_all("(all) => all.map((e) => Number(e.getAttribute('fill-opacity')))")
            )
            assert shades == pytest.approx(0.88 * (1 - is_taken.mean(axis=0)))


def test_the_page_works_without_a_mouse(visit: Visit) -> None:
    page = visit("report")
    outlines = []
    for _ in range(200):
        page.keyboard.press("Tab")
        style = "getComputedStyle(document.activeElement)"
        outlines.append(page.evaluate(f"{style}.outlineStyle + {style}.opacity"))
        if page.evaluate("document.activeElement.id") == "beta-beta":
            break
    else:
        pytest.fail("the slider cannot be reached")
    assert all(outline in ("solid1", "solid0") for outline in outlines)
    for key, word in {"ArrowRight": "16", "Home": "0.05", "ArrowUp": "1"}.items():
        page.keyboard.press(key)
        assert page.locator("#beta output").inner_text() == word
        assert page.locator("#beta-beta").get_attribute("aria-valuetext") == word
        assert any(f"β = {word}, layer 1" in title for title in visible(page, "#beta figcaption"))
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert all("layer 2" in title for title in visible(page, "#beta figcaption"))


def test_names_that_look_like_markup_are_text(visit: Visit) -> None:
    page = visit("report")
    page.locator("#evaluation details").first.click()
    shown = page.locator("#evaluation").inner_text()
    assert all(name in shown for name in CLASSES)
    labels = page.locator(".picker input").evaluate_all("(all) => all.map((e) => e.ariaLabel)")
    assert {label.partition(": ")[2] for label in labels} == set(CLASSES)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("script").count() == 2 and page.locator("main b").count() == 0


CONTRAST = """
(selector) => {
  const style = getComputedStyle(document.querySelector(selector));
  const light = (color) => {
    const parts = color.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ink = light(style.fill === "rgb(0, 0, 0)" ? style.color : style.fill);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [paper, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_color_schemes_have_contrast(scheme: str, visit: Visit) -> None:
    page = visit("report", color_scheme=scheme)
    for selector in ("h1", "main p", "tbody th", "nav a", ".plot text", ".plot .soft", ".badge"):
        paper, contrast = page.evaluate(CONTRAST, selector)
        assert (paper < 0.05) == (scheme == "dark")
        assert contrast >= (3.5 if selector == ".badge" else 4.5), selector


def test_each_figure_saves_its_numbers_as_csv(visit: Visit) -> None:
    page = visit("report")
    title = page.locator("#training figcaption").first.inner_text()
    assert title == "Loss"
    with page.expect_download() as waiting:
        page.get_by_role("button", name=f"CSV: {title}", exact=True).click()
    assert waiting.value.suggested_filename == "loss.csv"
    header, *rows = csv.reader(Path(waiting.value.path()).read_text().splitlines())
    assert header == ["line", "epoch", "cross-entropy, nats"]
    assert [row[:2] for row in rows] == [["training", "1"], ["training", "2"]]
    shown = page.locator("#training figure").first.locator("tbody tr")
    table = [row.locator("td").first.text_content().strip() for row in shown.all()]
    assert [float(row[2]) for row in rows] == [float(cell) for cell in table]
    visible = page.locator("figure:not([hidden])")
    assert page.locator("figure:not([hidden]) [data-csv]").count() == visible.count() - 1
    # the figure without a button is the energy of the image view


def test_names_in_csv_are_quoted_and_never_formulas(visit: Visit) -> None:
    page = visit("report")
    spec = {"kind": "bars", "labels": ['=1+1, "x"', "-3", "plain"], "parts": {"a": [1, 2, None]}}
    spec |= {"low": [], "high": [], "marks": {}}
    text = page.evaluate("(spec) => charts.csv(spec)", spec)
    rows = list(csv.reader(text.splitlines()))
    assert rows == [["", "a"], ['\'=1+1, "x"', "1"], ["-3", "2"], ["plain", ""]]


@pytest.mark.parametrize("width", [390, 1280])
def test_labels_of_many_points_cover_neither_each_other_nor_a_dot(
    width: int, visit: Visit
) -> None:
    page = visit("report", {"width": width, "height": 900})
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.normal(0, 0.02, 30), draw.uniform(-1, 1, 10)])
    y = np.concatenate([draw.normal(0, 0.02, 30), draw.uniform(-1, 1, 10)])
    spec = {
        **{"kind": "points", "title": "t", "x_label": "a", "y_label": "b", "note": ""},
        **{"x": x.tolist(), "y": y.tolist(), "groups": [], "shades": []},
        "labels": [str(i + 1) for i in range(40)],
    }
    page.evaluate(
        "(spec) => {const plot = document.createElement('div'); plot.className = 'plot crowd';"
        " document.querySelector('#run').prepend(plot); charts.draw(plot, spec);}",
        spec,
    )
    boxes = page.locator(".crowd text:not(.soft)").evaluate_all(
        "(all) => all.filter((e) => !['a', 'b'].includes(e.textContent))"
        ".map((e) => e.getBoundingClientRect())"
        ".map((b) => [b.left, b.top + 3, b.right, b.bottom - 3])"
    )
    dots = page.locator(".crowd circle").evaluate_all(
        "(all) => all.map((e) => e.getBoundingClientRect())"
        ".map((b) => [b.left + 1, b.top + 1, b.right - 1, b.bottom - 1])"
    )
    assert len(dots) == 40 and len(boxes) >= 10

    def cover(one: list[float], other: list[float]) -> bool:
        return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

    assert not [pair for pair in combinations(boxes, 2) if cover(*pair)]
    assert not [(box, dot) for box in boxes for dot in dots if cover(box, dot)]
    assert "would overlap and are left out" in page.locator(".crowd .note").inner_text()


def test_the_keyboard_reaches_what_scrolls_and_skips_the_list_of_sections(visit: Visit) -> None:
    page = visit("report", PHONE)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    page.wait_for_timeout(100)
    frames = page.locator(".wide:visible").evaluate_all(
        "(all) => all.map((e) => ["
        "e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight,"
        " e.tabIndex === 0, Boolean(e.ariaLabel)])"
    )
    assert frames and all(scrolls == reachable for scrolls, reachable, _ in frames)
    assert all(label for *_, label in frames)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_pictures_and_charts_have_text_alternatives(visit: Visit) -> None:
    page = visit("report")
    texts = page.locator(".pictures img").evaluate_all("(all) => all.map((e) => e.alt)")
    assert texts and all("predicted: " in text for text in texts)
    about = page.locator("figure:not([hidden]) svg[aria-describedby]").evaluate_all(
        "(all) => all.map((e) => document.getElementById(e.getAttribute('aria-describedby')))"
        ".map((e) => e.textContent)"
    )
    assert len(about) >= 6 and all(len(text) > 30 for text in about)
    assert any(text.startswith("Line chart: accuracy, % by epoch.") for text in about)


def test_print_opens_all_tables_and_omits_the_controls(visit: Visit) -> None:
    page = visit("report", color_scheme="dark")
    tables = page.locator("figure:not([hidden]) > details table")
    assert not any(table.is_visible() for table in tables.all())
    page.emulate_media(media="print", color_scheme="dark")
    assert all(table.bounding_box()["height"] > 20 for table in tables.all())
    assert not page.locator("nav").is_visible() and visible(page, ".controls") == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    content = page.pdf(format="A4")
    assert content.startswith(b"%PDF") and content.count(b"/Type /Page\n") >= 4
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "report.pdf").write_bytes(content)


def test_charts_follow_the_width_of_the_window(visit: Visit) -> None:
    page = visit("report")
    box = page.locator("#training svg[role=img]").first
    wide = box.get_attribute("viewBox")
    page.set_viewport_size(PHONE)
    expect(box).not_to_have_attribute("viewBox", wide or "")
    check_sizes(page, PHONE["width"])


def test_without_scripts_texts_tables_and_mistakes_are_shown(visit: Visit) -> None:
    page = visit("report", java_script_enabled=False)
    assert "need JavaScript" in page.locator("noscript").inner_text()
    assert not page.locator(".controls").first.is_visible()
    assert page.locator("#run table").first.is_visible()
    assert len([e for e in page.locator(".pictures img").all() if e.is_visible()]) > 0
    assert page.locator("#beta figure details").count() > 10


def test_a_comparison_has_two_columns_with_their_own_controls(visit: Visit) -> None:
    page = visit("comparison")
    a, b = page.locator("#competition .side").all()
    assert a.bounding_box()["x"] + a.bounding_box()["width"] <= b.bounding_box()["x"]
    before = b.inner_text()
    page.select_option("#competition-A-layer", "1")
    assert "layer 2" in a.locator("figcaption:visible").inner_text()
    assert b.inner_text() == before
    page.set_viewport_size(PHONE)
    assert a.bounding_box()["x"] == b.bounding_box()["x"]


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_screenshots_are_saved_for_inspection(name: str, visit: Visit) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    for kind, viewport, scheme in (
        ("desktop", DESKTOP, "light"),
        ("dark", DESKTOP, "dark"),
        ("phone", PHONE, "light"),
    ):
        path = ARTIFACTS / f"{name}-{kind}.png"
        visit(name, viewport, color_scheme=scheme).screenshot(path=path, full_page=True)
        assert path.stat().st_size > 50_000
