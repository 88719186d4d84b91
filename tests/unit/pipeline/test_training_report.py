"""The page and the picture of a training: right in every corner case, whole, and safe to open."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.core.progress import Progress
from argosy.pipeline.report.chart import Chart, Line, marks, picture
from argosy.pipeline.report.losses import LossCurve
from argosy.pipeline.report.training import Sample, TrainingReport

SVG = "{http://www.w3.org/2000/svg}"


def history(epochs=5, **more):
    return [
        {"epoch": float(n), "loss": 2.0 / n, "validation_loss": 2.2 / n, "accuracy": 1 - 0.5 / n, "seconds": n, **more}
        for n in range(1, epochs + 1)
    ]


def report(**fields):
    known = {
        "project": "digits",
        "task": "classification",
        "history": history(),
        "metric": "accuracy",
        "best": 0.9,
        "steps": 500,
        "seconds": 12.0,
    }
    return TrainingReport(**{**known, **fields})


class Page(HTMLParser):
    """Checks that tags match, and collects the text."""

    VOID = ("meta", "line", "circle", "polyline", "rect")

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def lines_of(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in ET.fromstring(svg).iter(f"{SVG}polyline")
    ]


@pytest.mark.capability("T6")
def test_the_picture_shows_the_loss_of_both_parts_and_the_metric_with_its_best_epoch():
    svg = report().picture()
    training, validation, accuracy = lines_of(svg)
    assert len(training) == len(validation) == len(accuracy) == 5
    # Down on the paper is less: y grows downwards.
    assert [y for _, y in training] == sorted(y for _, y in training)
    assert [y for _, y in accuracy] == sorted((y for _, y in accuracy), reverse=True)
    assert "best: 0.9 in epoch 5" in svg


@pytest.mark.capability("T6")
def test_a_picture_is_drawn_to_scale():
    svg = picture([Chart(title="t", lines=[Line("a", [(0, 0.0), (1, 1.0), (2, 4.0)])], x_name="x")])
    ((x0, y0), (x1, y1), (x2, y2)) = lines_of(svg)[0]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y2) == pytest.approx(4 * (y0 - y1), abs=0.5)


def test_the_page_is_whole_and_loads_nothing_from_anywhere():
    page = report(notes=["a note"], settings={"train.workers": 2}, samples={"train": 1437}).page()
    found = Page(page)
    text = " ".join(found.text)
    assert "1,437" in text
    assert "a note" in text
    assert "train.workers" in text
    assert not [tag for tag, _ in found.tags if tag in ("script", "link", "img", "iframe")]
    assert not re.search(r"https?://(?!www\.w3\.org)|url\(|@import", page)
    assert "prefers-color-scheme:dark" in page


@pytest.mark.capability("B1")
def test_what_a_model_writes_is_shown_as_text_whatever_it_writes():
    wild = "<script>alert(1)</script> & \x00\x1b[31m \ud800 \u202e end\n"
    page = report(texts=[Sample(prompt="Once <b>", text=wild, how="top 40")], project="<i>").page()
    found = Page(page)
    assert "script" not in [tag for tag, _ in found.tags]
    assert "b" not in [tag for tag, attributes in found.tags if not attributes and tag == "i"]
    text = "".join(found.text)
    assert "<script>alert(1)</script> & " in text
    assert "\x00" not in page
    page.encode()


def test_the_main_metric_of_the_test_part_stands_beside_that_of_the_validation_part():
    text = " ".join(Page(report(tested={"test_accuracy": 0.8765, "test_f1": 0.5}).page()).text)
    assert "0.8765" in text
    assert "test accuracy" in text
    assert "validation accuracy" in text


def test_lower_is_better_for_errors():
    entries = [{"loss": 1.0, "rmse": value} for value in (3.0, 1.0, 2.0)]
    assert report(history=entries, metric="rmse").best_epoch == 2
    assert report(history=entries, metric="perplexity").best_epoch == 0


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"epoch": 1.0, "loss": 0.5}],
        [{"epoch": 1.0, "loss": math.nan}, {"epoch": 2.0, "loss": math.inf}],
        [{"epoch": 1.0, "loss": 0.0, "accuracy": 1.0}] * 3,
        [{"epoch": 1.0, "loss": 1e308, "accuracy": 0.0}, {"epoch": 2.0, "loss": -1e308, "accuracy": 1.0}],
        [{"epoch": 1.0, "loss": 1e-320, "accuracy": 0.5}, {"epoch": 2.0, "loss": 5.0, "accuracy": 0.5}],
    ],
)
def test_histories_at_the_edge_make_a_page_and_a_picture(entries):
    for metric in ("accuracy", "loss"):
        made = report(history=entries, metric=metric, best=math.nan)
        Page(made.page())
        svg = made.picture()
        ET.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg.replace("info", "")


@given(st.floats(-1e200, 1e200), st.floats(0, 1e200))
def test_marks_enclose_the_values_and_are_not_too_many(low, width):
    found = marks(low, low + width)
    assert 1 <= len(found) <= 14
    assert found == sorted(set(found))
    room = 1e-6 * max(abs(low), width, 1e-9)
    assert found[0] <= low + room
    assert found[-1] >= low + width - room


# --- the loss in between epochs -------------------------------------------------------------------------------------


def news(step, loss, *, epoch, total=40, epochs=4):
    return Progress(
        stage="train", message=f"epoch {epoch}/{epochs}", done=step, total=total, unit="steps", values={"loss": loss}
    )


@pytest.mark.capability("T6")
def test_the_loss_between_two_pieces_of_news_follows_from_the_means_of_the_epoch(tmp_path):
    heard = []
    curve = LossCurve(tmp_path / "curve.json", heard.append)
    # Losses 4, 4, 4, 4, 4, 2, 2, 2, 2, 2 and then 1 in every step: the news has means since the epoch began.
    for one in (news(5, 4.0, epoch=1), news(10, 3.0, epoch=1), news(14, 1.0, epoch=2), news(20, 1.0, epoch=2)):
        curve(one)
    assert [(x, y) for x, y in curve.points(10.0)] == [
        pytest.approx(p) for p in [(0.25, 4.0), (0.75, 2.0), (1.2, 1.0), (1.7, 1.0)]
    ]
    assert len(heard) == 4


def test_news_without_a_loss_is_handed_on_and_otherwise_left_alone(tmp_path):
    heard = []
    curve = LossCurve(tmp_path / "curve.json", heard.append)
    for one in (
        Progress(stage="train", message="goes on from the checkpoint of step 7", done=7),
        Progress(stage="train", message="rank 1 was ended by signal 9"),
        news(5, math.nan, epoch=1),
    ):
        curve(one)
    assert len(heard) == 3
    assert curve.points(10.0) == []


def test_a_curve_goes_on_behind_the_checkpoint_that_a_training_goes_back_to(tmp_path):
    curve = LossCurve(tmp_path / "curve.json", lambda _: None)
    for step in range(1, 41):
        curve(news(step, 2.0, epoch=(step - 1) // 10 + 1))
    again = LossCurve(tmp_path / "curve.json", lambda _: None)
    assert len(again.points(10.0)) == 40
    again(news(26, 1.5, epoch=3))
    xs = [x for x, _ in again.points(10.0)]
    assert xs == sorted(xs)
    assert max(xs) < 2.6


def test_a_long_curve_keeps_its_mean_in_fewer_points(tmp_path):
    curve = LossCurve(tmp_path / "curve.json", lambda _: None)
    for step in range(1, 1501):
        curve(news(step, 3.0, epoch=1, total=1500, epochs=1))
    points = curve.points(1500.0)
    assert 250 <= len(points) <= 300
    assert {round(loss, 6) for _, loss in points} == {3.0}
