"""The report: complete in one file, honest about what is wrong, asking nothing of a network."""

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from evaluation_kit import BrightSpotDetector, data_set, manifest, part, plots_drawn_once, save  # noqa: F401

import export.plots
import export.report
from export.dataset import find_samples
from export.evaluate import evaluate, summarise
from export.report import ReportError, check_requirements, render, worst_first

pytestmark = pytest.mark.usefixtures("plots_drawn_once")

CLASSES = {"good": [100, 104, 130, 150], "dent": [118, 160, 220], "stain": [135, 200]}
BANK = np.array([[100, 100, 100], [101, 99, 100], [104, 104, 103], [98, 100, 102]], np.float32)


class Page(HTMLParser):
    """What a browser would load, show and run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.images: list[dict[str, str]] = []
        self.inputs: list[dict[str, str]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.references += [given[k] for k in ("src", "href", "xlink:href", "action", "data", "srcset") if k in given]
        if tag == "img":
            self.images.append(given)
        if tag == "input":
            self.inputs.append(given)
        assert not [key for key in given if key.startswith("on")], "a handler is a script"

    def handle_data(self, data):
        self.text += data


def report(root, classes=CLASSES, masks=True, detector=None, **changes):
    of = manifest(**changes)
    samples = find_samples(data_set(root, classes, masks))
    evaluated = evaluate(detector or BrightSpotDetector(of), of, samples, for_report=True)
    identity = {
        "name": of.name,
        "version": of.version,
        "digest": of.self_sha256,
        "provisional": of.provisional,
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
        "search": "certified",
        "patches": 48,
    }
    figures = {"recipe": identity, "data": str(root), **summarise(evaluated)}
    return evaluated, render(evaluated, figures, of, BANK)


@pytest.fixture(scope="module")
def page_text(tmp_path_factory):
    return report(tmp_path_factory.mktemp("data"))[1]


def test_the_page_refers_to_nothing_outside_itself(page_text):
    page = Page(page_text)
    assert page.references
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", page_text.split("<style>")[0])
    without_pictures = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=\s]*", "", page_text)
    assert not re.search(r"https?:|ftp:|@import|url\((?!#)", without_pictures)
    assert "default-src 'none'" in page_text


def test_the_page_works_without_scripts(page_text):
    page = Page(page_text)
    assert "script" not in page.tags
    wanted = {"class-all", "class-0", "class-1", "class-2", "show-all", "show-wrong", "show-escape"}
    assert wanted <= {i["id"] for i in page.inputs}
    for number in range(3):
        assert f"#class-{number}:checked ~ .gallery .picture:not(.class-{number})" in page_text


def test_every_picture_is_shown_with_its_truth_and_its_heat(page_text):
    page = Page(page_text)
    pictures = [i for i in page.images if i["alt"]]
    assert len(pictures) == 2 * 9
    for image in pictures:
        data = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3)
        assert re.search(r"test/(good|dent|stain)/00\d\.png", image["alt"])


def test_the_header_says_which_recipe_which_threshold_and_how_sure(page_text):
    page = Page(page_text)
    for words in ("lid", "ab" * 32, "20 to 40", "not decidable between", "Escapes", "False rejects", "95%:"):
        assert words in page.text


def test_the_page_says_how_many_exact_searches_a_picture_needed(page_text):
    text = " ".join(Page(page_text).text.split())
    assert (
        "certified: 60 exact searches per picture at the median, 100 at the most, boxes included; a picture has 48"
        in text
    )


def test_escapes_come_first_then_false_rejects_then_the_closest(tmp_path):
    evaluated, text = report(tmp_path)
    order = [evaluated.judged[i] for i in worst_first(evaluated)]
    assert [j.escaped for j in order] == [True] + [False] * 8
    assert [j.falsely_rejected for j in order[1:3]] == [True, True]
    assert order[1].score == pytest.approx(50)  # the good part that is rejected most clearly
    assert [round(j.score) for j in order[3:]] == [35, 4, 0, 60, 100, 120]
    assert text.index("test/dent/000.png") < text.index("test/good/003.png") < text.index("test/good/001.png")


def test_names_from_disk_cannot_become_markup(tmp_path):
    data_set(tmp_path, CLASSES)
    evil = 'x" onerror="alert(1)"><b id=evil>.png'
    save(tmp_path / "test" / "<i>dent" / evil, part(220))
    _, text = report(tmp_path)
    page = Page(text)
    assert "evil" not in {i.get("id") for i in page.images}
    assert "<b id=evil>" not in text
    assert "<i>dent" not in text
    assert "<i>dent" in page.text


def test_good_pictures_alone_make_a_page_that_says_what_is_missing(tmp_path):
    _, text = report(tmp_path, {"good": [100, 130]})
    page = Page(text)
    assert "Only good pictures" in page.text
    assert 'aria-label="ROC curves"' not in text
    assert 'aria-label="Image scores by class' in text


def test_defects_without_masks_make_a_page_without_pixel_figures(tmp_path):
    _, text = report(tmp_path, masks=False)
    page = Page(text)
    assert "No ground truth masks" in page.text
    assert "ground truth outlined" not in page.text


def test_a_provisional_recipe_is_called_provisional(tmp_path):
    assert "Provisional recipe" in Page(report(tmp_path, provisional=True)[1]).text


def test_plots_take_the_colours_of_the_page_in_light_and_dark(page_text):
    plots = re.findall(r"<svg.*?</svg>", page_text, re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        assert "currentColor" in plot
        assert "#010203" not in plot
        assert "<metadata" not in plot
    assert "prefers-color-scheme: dark" in page_text
    assert "@media print" in page_text


def test_pictures_full_of_noise_do_not_blow_the_report_up(tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    data_set(tmp_path, {"dent": [180]})
    for number in range(40):
        save(tmp_path / "test" / "good" / f"{number}.png", noise.integers(0, 90, (48, 64, 3), dtype=np.uint8))
    big = len(report(tmp_path)[1])
    monkeypatch.setattr(export.report, "_PICTURE_BUDGET_BYTES", 82 * 1500)
    assert len(report(tmp_path)[1]) < big - 82 * 500


def test_more_pictures_than_can_be_shown_are_counted_and_the_worst_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(export.report, "_SHOWN_AT_MOST", 3)
    _, text = report(tmp_path)
    page = Page(text)
    assert "6 further pictures" in page.text
    assert len([i for i in page.images if i["alt"]]) == 6
    assert "test/dent/000.png" in page.text


def test_without_the_extra_the_report_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(export.report, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(ReportError, match=r"needs matplotlib: pip install matplotlib \(it takes no torch\)"):
        check_requirements(tmp_path / "report.html")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    check_requirements(tmp_path / "report.html")
    for place in (tmp_path, tmp_path / "nowhere" / "report.html"):
        with pytest.raises(ReportError, match="folder that exists"):
            check_requirements(place)


CALIBRATED = {
    "method": "split-conformal",
    "unit": "block",
    "n": 120,
    "false_reject_rate": 0.01,
    "marginal_rate": 0.00826,
    "upper_rate": 0.0246,
    "upper_rate_confidence": 0.95,
}


def test_the_rate_is_stated_on_average_and_with_confidence(tmp_path):
    text = Page(report(tmp_path, calibration=CALIBRATED)[1]).text
    for words in (
        "At most 1% of good parts rejected; 120 blocks",
        "like this one: 0.83%",
        "95% confidence, at most 2.46%",
    ):
        assert words in text


def test_good_pictures_rejected_beyond_the_stated_rate_are_called_out(tmp_path):
    promised = {"good": [100] * 17 + [130] * 3}
    _, text = report(tmp_path, promised, calibration=CALIBRATED)
    assert "3 of 20 good pictures are rejected, more than the 2.46%" in Page(text).text
    lucky, _ = report(tmp_path / "other", {"good": [100] * 19 + [130]}, calibration=CALIBRATED)
    assert not any("more than the" in note for note in lucky.notes)


@pytest.mark.parametrize("calibration", [{}, {"method": 3, "upper_rate": "many"}, {"false_reject_rate": 7}])
def test_calibration_evidence_of_another_kind_is_no_rate_and_no_failure(tmp_path, calibration):
    assert "the recipe states none" in Page(report(tmp_path, calibration=calibration)[1]).text


def test_the_ticks_of_an_axis_in_per_cent_say_where_they_are():
    assert [export.plots._percent(tick, 0) for tick in (0.0, 0.025, 0.05, 0.1 + 0.2, 1.0)] == [
        "0%", "2.5%", "5%", "30%", "100%",
    ]  # fmt: skip
