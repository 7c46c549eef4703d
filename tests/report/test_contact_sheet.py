"""The contact sheet of `ait predict`: pictures, wrong answers, filters and limits."""

import csv
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from associative_transformer.predict import Prediction
from associative_transformer.report import contact_sheet
from associative_transformer.report.contact_sheet import ContactSheet
from making.commands import Ait, assert_refused

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
CLASSES = ("blue", "red", "<b>odd</b>")


def put_picture(path: Path, size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def sheet_of(*answers: tuple[Path, list[float]], question: str | None = None) -> ContactSheet:
    sheet = ContactSheet(CLASSES, question)
    predictions = [Prediction(path, torch.tensor(shares)) for path, shares in answers]
    assert list(sheet.collect(predictions)) == predictions
    return sheet


def items_of(page: str) -> list[dict[str, str]]:
    """Return the attributes of each picture, and its text."""
    found = []
    for attributes, body in re.findall(r"<li class=\"\w+\" (.*?)>(.*?)</li>", page, re.DOTALL):
        values = dict(re.findall(r'data-(\w+)="(.*?)"', attributes))
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).strip()
        found.append({name: unescape(value) for name, value in values.items()} | {"text": text})
    return found


@pytest.fixture
def labeled(tmp_path: Path) -> ContactSheet:
    """Return a sheet of a right, a wrong and two unlabeled answers."""
    return sheet_of(
        (put_picture(tmp_path / "blue" / "0.png"), [0.7, 0.2, 0.1]),
        (put_picture(tmp_path / "red" / "1.png"), [0.05, 0.15, 0.8]),
        (put_picture(tmp_path / "other" / "2.png"), [0.1, 0.5, 0.4]),
        (put_picture(tmp_path / "3.png"), [0.9, 0.06, 0.04]),
    )


def test_a_picture_has_its_answers_and_is_wrong_if_its_folder_names_another_class(
    labeled: ContactSheet,
) -> None:
    page = labeled.render("t")
    items = items_of(page)
    assert [item["verdict"] for item in items] == ["right", "wrong", "unknown", "unknown"]
    assert [item["answer"] for item in items] == ["blue", "<b>odd</b>", "red", "blue"]
    assert float(items[1]["confidence"]) == pytest.approx(0.8)
    assert "wrong:" in items[1]["text"] and "true class: red" in items[1]["text"]
    assert "true class" not in items[0]["text"]
    assert "2 are in folders named after classes: 1 answers are right, 1 are wrong" in page
    assert "Accuracy: 50.00 %" in page
    assert page.count("data:image/png;base64,") == 4 and "<b>odd" not in page


def test_answers_to_a_question_are_never_called_wrong(tmp_path: Path) -> None:
    picture = put_picture(tmp_path / "red" / "0.png")
    page = sheet_of((picture, [0.9, 0.1, 0.0]), question="is it <red>?").render("t")
    assert [item["verdict"] for item in items_of(page)] == ["unknown"]
    assert "Question: is it &lt;red&gt;?" in page and 'value="wrong"' not in page


def test_of_too_many_pictures_the_wrong_and_the_least_confident_are_shown(
    labeled: ContactSheet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "MAX_PICTURES", 2)
    page = labeled.render("t")
    assert [item["verdict"] for item in items_of(page)] == ["wrong", "unknown"]
    assert items_of(page)[1]["answer"] == "red"  # 50 %
    assert "4 images." in page and "Shown: 2, wrong answers first" in page


def test_large_pictures_are_scaled_down_and_lost_ones_are_named(tmp_path: Path) -> None:
    large, lost = put_picture(tmp_path / "a.png", (600, 400)), put_picture(tmp_path / "b.png")
    sheet = sheet_of((large, [1.0, 0.0, 0.0]), (lost, [1.0, 0.0, 0.0]))
    lost.unlink()
    page = sheet.render("t")
    assert page.count("data:image/jpeg") == 1 and "cannot be read" in items_of(page)[1]["text"]
    assert len(page) < 60_000


def test_the_command_writes_a_sheet_with_the_answers_of_the_table(
    ait: Ait, root: Path, tmp_path: Path
) -> None:
    images = root / "images" / "test"
    done = ait("predict", root / "ait", images, "--sheet", "s.html", "--output", "o.csv")
    assert (done.code, done.out) == (0, "") and "written: s.html" in done.err
    rows = list(csv.DictReader(Path("o.csv").read_text().splitlines()))
    items = items_of(Path("s.html").read_text())
    assert [item["answer"] for item in items] == [row["class_1"] for row in rows]
    for item, row in zip(items, rows, strict=True):
        is_right = row["class_1"] == Path(row["path"]).parent.name
        assert item["verdict"] == ("right" if is_right else "wrong")
    before = {path: path.read_bytes() for path in images.rglob("*.png")}
    victim = next(iter(before))
    assert_refused(ait("predict", root / "ait", images, "--sheet", victim), "--sheet", "input")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_pictures_are_filtered_and_sorted_in_a_browser(
    labeled: ContactSheet, tmp_path: Path
) -> None:
    path = tmp_path / "sheet.html"
    path.write_text(labeled.render("t"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.as_uri())

        def shown() -> list[str]:
            items = page.locator(".sheet li:visible").all()
            return [Path(each.locator(".path").inner_text()).name for each in items]

        assert shown() == ["0.png", "1.png", "2.png", "3.png"]
        page.select_option("#order", "low")
        assert shown() == ["2.png", "0.png", "1.png", "3.png"]
        page.select_option("#order", "file")
        page.select_option("#verdict", "wrong")
        assert shown() == ["1.png"]
        assert page.locator("#count").inner_text() == "1 of 4 pictures"
        page.select_option("#verdict", "")
        page.select_option("#answer", "blue")
        page.fill("#most", "80")
        assert shown() == ["0.png"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert problems == []
        browser.close()
