"""The report in a browser: it loads without complaint, its controls work, and it fits every window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.browser import Browser, needs_browser, start_browser
from tests.helpers.runs import FIRST_ID, GATES, KEPT, write_run
from tests.report.test_html import HOSTILE

from report.examples import Asked, Picture
from report.html import write_report

pytestmark = needs_browser

# One grey pixel.
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAH9/f////yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
QUESTION = "document.getElementById('question')"
DASH = "\u2013"  # what a dead gate shows


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Browser]:
    """The browser; when the test ends, it must not have complained, nor have loaded anything but the file."""
    browser.errors.clear()
    browser.requests.clear()
    browser.prefer("light")
    yield browser
    assert browser.errors == []
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "about", "data"}


def look_up(images: Mapping[int, str]) -> Asked:
    """Texts, human answers, boxes and pictures of all questions."""
    return Asked(
        {question: f"what is number {question}?" for question in images},
        {question: [("red", "7 of 10"), ("pink", "3 of 10")] for question in images},
        {image: [[0.1, 0.2, 0.5, 0.6]] for image in images.values()},
        {image: Picture(PIXEL, 40, 30) for image in images.values()},
    )


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "report.html"
    write_report([write_run(tmp_path / "a")], file, look_up)
    return file


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    file = tmp_path / "pair.html"
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", 1, adaptive=False)]
    write_report(runs, file, look_up)
    return file


def shown(page: Browser) -> int:
    """The number of the question that is shown, from 0."""
    text = page.value(f"{QUESTION}.querySelector('a').textContent")
    return int(text.removeprefix("question ")) - FIRST_ID


def listed(page: Browser) -> int:
    return page.value("document.querySelectorAll('#list a').length")


def change(page: Browser, selector: str, value: str) -> None:
    """Choose in a list, or move a slider, as a user does."""
    element = f"document.querySelector({selector!r})"
    events = "for (const name of ['input', 'change']) e.dispatchEvent(new Event(name, { bubbles: true }))"
    page.value(f"{{ const e = {element}; e.value = {value!r}; {events} }}")


def labels(page: Browser, within: str = "figure.map") -> list[str]:
    """What stands in the cells of a map of gates, in the order of the gates."""
    cells = f"[...document.querySelectorAll('{within} [data-gate]')]"
    order = "sort((a, b) => a.dataset.gate - b.dataset.gate)"
    return page.value(f"{cells}.{order}.map((cell) => cell.querySelector('text').textContent)")


def test_it_loads_and_shows_a_question(page: Browser, report: Path) -> None:
    page.open(report)
    assert shown(page) == 0 and listed(page) == KEPT
    text = page.value(f"{QUESTION}.textContent")
    assert f"what is number {FIRST_ID}?" in text and "red 7 of 10" in text and "75.0 %" in text
    assert page.value(f"{QUESTION}.querySelectorAll('.answers tr').length") == 5
    assert page.value(f"{QUESTION}.querySelector('image').getAttribute('href')") == PIXEL
    assert page.value("document.getElementById('missing').hidden")


def test_the_slider_shows_the_gates_of_each_epoch(page: Browser, report: Path) -> None:
    page.open(report)
    with np.load(report.parent / "a" / "usage.npz") as usage:
        expected = np.rint(100 * usage["val"]).astype(int)
        training = np.rint(100 * usage["train"]).astype(int)
        by_type = np.rint(100 * usage["val_by_type"]).astype(int)

    def texts(shares: np.ndarray) -> list[str]:
        return [str(share) if gate[-1] else DASH for share, gate in zip(shares, GATES, strict=True)]

    assert labels(page) == texts(expected[2])
    change(page, "figure.map .epoch", "1")
    assert labels(page) == texts(expected[0])
    assert page.value("document.querySelector('figure.map output').textContent") == "epoch 1"
    change(page, "figure.map .examples", "train")
    assert labels(page) == texts(training[0])
    change(page, "figure.map .examples", "1")
    assert labels(page) == texts(by_type[1])
    assert page.value("document.querySelector('figure.map .epoch').disabled")
    assert page.value("document.querySelector('figure.map output').textContent") == "epoch 3"


def test_the_keyboard_moves_the_slider(page: Browser, report: Path) -> None:
    page.open(report)
    page.value("document.querySelector('figure.map .epoch').focus()")
    page.press("ArrowLeft")
    assert page.value("document.querySelector('figure.map output').textContent") == "epoch 2"
    assert shown(page) == 0  # an arrow that moves the slider is not one that goes to the next question


def test_the_keyboard_goes_through_the_questions(page: Browser, report: Path) -> None:
    page.open(report)
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert shown(page) == 4 and page.value("location.hash") == f"#question={FIRST_ID + 4}"
    page.press("ArrowLeft")
    assert shown(page) == 2
    assert page.value("document.querySelector('#list [aria-current]').textContent").endswith(
        f"{FIRST_ID + 2}?"
    )
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert shown(page) == 0  # there is none before the first
    assert page.value(f"{QUESTION}.querySelectorAll('.box').length") == 1
    page.press("b")
    assert page.value(f"{QUESTION}.querySelectorAll('.box').length") == 0


def test_filters_leave_what_is_asked_for(page: Browser, report: Path) -> None:
    with np.load(report.parent / "a" / "scores" / "minival.npz") as scores:
        sampled = scores["score"][: 2 * KEPT : 2]
        colours = scores["question_type"][: 2 * KEPT : 2] == "colour"
    page.open(report)
    page.press("w")
    assert listed(page) == (sampled < 0.5).sum() and 0 < listed(page) < KEPT
    assert shown(page) == 2 * int(np.flatnonzero(sampled < 0.5)[0])
    page.press("w")
    assert listed(page) == KEPT
    change(page, "#type", '["question type","count"]')
    assert listed(page) == (~colours).sum()
    change(page, "#type", "")
    page.press("u")
    assert (
        page.value("document.querySelector('#list a').hash") == f"#question={FIRST_ID}"
    )  # which alone departs
    change(page, "#order", "sure")
    assert page.value("document.getElementById('count').textContent").endswith(f"of {KEPT}")


def test_a_link_leads_to_its_question_through_a_filter(page: Browser, report: Path) -> None:
    with np.load(report.parent / "a" / "scores" / "minival.npz") as scores:
        right = 2 * int(np.flatnonzero(scores["score"][: 2 * KEPT : 2] >= 0.5)[-1])
    page.open(report, f"#question={FIRST_ID + right}")
    assert shown(page) == right
    page.press("ArrowLeft")
    page.press("w")
    page.value(
        f"new Promise((done) => {{ onhashchange = done; location.hash = 'question={FIRST_ID + right}'; }})"
    )
    assert shown(page) == right and not page.value("document.getElementById('wrong').checked")


def test_a_link_to_a_question_that_is_not_kept_says_so(page: Browser, report: Path) -> None:
    page.open(report, "#question=1")
    assert page.value("document.getElementById('missing').textContent").startswith("Question 1 is not among")
    assert shown(page) == 0
    page.press("ArrowRight")
    assert page.value("document.getElementById('missing').hidden")


def test_gates_that_depart_from_the_usual_choice_are_marked(page: Browser, report: Path) -> None:
    page.open(report)
    live = [gate[-1] for gate in GATES]
    marks = [("!" if number % 2 == 0 else "") if on else DASH for number, on in enumerate(live)]
    assert labels(page, "#question") == marks
    count = sum(on and number % 2 == 0 for number, on in enumerate(live))
    words = f"{count} of {sum(live)} gates ran tuned (filled); {count} unlike most questions (!)."
    assert words in page.value(f"{QUESTION}.textContent")


def test_two_runs_answer_side_by_side(page: Browser, pair: Path) -> None:
    page.open(pair)
    assert page.value(f"[...{QUESTION}.querySelectorAll('.letter')].map((e) => e.textContent)") == ["A", "B"]
    assert page.value(f"{QUESTION}.querySelectorAll('.panels').length") == 1  # B has no gates
    everything = listed(page)
    page.value("document.getElementById('differ').click()")
    assert 0 < listed(page) < everything
    answers = f"[...{QUESTION}.querySelectorAll('.answers tr:first-child th')].map((e) => e.textContent)"
    assert len(set(page.value(answers))) == 2


def test_hostile_texts_stay_texts(page: Browser, tmp_path: Path) -> None:
    def hostile(images: Mapping[int, str]) -> Asked:
        texts = {question: HOSTILE[(question - FIRST_ID) // 2 % len(HOSTILE)] for question in images}
        return Asked(texts, {question: [(text, "1") for text in HOSTILE] for question in images})

    images = ("__proto__", "<img src=x onerror=alert(1)>", "constructor")
    run = write_run(tmp_path / "a", types=HOSTILE, answers=HOSTILE, images=images, label=HOSTILE[0])
    write_report([run], tmp_path / "report.html", hostile)
    for width in (80, 2000):
        page.open(tmp_path / "report.html", width=width)
        for text in HOSTILE:
            assert page.value(f"{QUESTION}.querySelector('h3').textContent") == text
            assert page.value(
                f"[...{QUESTION}.querySelectorAll('.human bdi')].map((e) => e.textContent)"
            ) == list(HOSTILE)
            page.press("ArrowRight")
        assert page.value("document.querySelectorAll('script').length") == 2
        assert page.value("document.querySelectorAll('img, b').length") == 0
        assert page.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [80, 320, 800, 2000])
def test_it_fits_windows_of_every_width(
    page: Browser, report: Path, pair: Path, width: int, scheme: str
) -> None:
    page.prefer(scheme)
    for file in (report, pair):
        page.open(file, width=width)
        page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.value("document.documentElement.scrollWidth") <= width


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map((part) => linear(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const style = getComputedStyle(document.documentElement);
  const of = (name) => luminance(style.getPropertyValue(`--${name}`).trim());
  const names = ["ink", "quiet", "link", "wrong", "right", "t0", "t1", "t2", "t3", "t4", "t5"];
  return names.map((name) => {
    const [low, high] = [of(name), of("ground")].sort((one, other) => one - other);
    return (high + 0.05) / (low + 0.05);
  });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_told_from_their_ground(page: Browser, report: Path, scheme: str) -> None:
    """A contrast of 4.5 : 1 at least, as WCAG 2 asks for texts of this size."""
    page.prefer(scheme)
    page.open(report)
    assert min(page.value(CONTRAST)) >= 4.5
    ground = page.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_what_is_printed_has_all_and_no_controls(page: Browser, report: Path) -> None:
    page.open(report)
    page.prefer("light", media="print")
    page.value("dispatchEvent(new Event('beforeprint'))")
    assert page.value("[...document.querySelectorAll('details')].every((each) => each.open)")
    visible = (
        "[...document.querySelectorAll('.controls, nav, #list')].filter((each) => each.offsetHeight).length"
    )
    assert page.value(visible) == 0
    assert page.value(f"{QUESTION}.offsetHeight") > 0
