import io

import msgspec
import pytest

from argosy.compress.report import CompressResult
from argosy.core.errors import Internal


@pytest.fixture
def result(candidate):
    original = candidate("original", recipe=[], ratio=1.0, size_ratio=1.0, p95_s=0.003)
    made = [
        candidate("int8", ratio=0.5, size_ratio=0.25, p95_s=0.002),
        candidate("slim + int8", ratio=0.2, size_ratio=0.1, agreement=0.995, lost=1, drop=0.005),
        candidate("slim", status="stopped", reason="too slow"),
    ]
    return CompressResult(
        budget="at most 1 point lost",
        max_drop=0.01,
        original=original,
        candidates=made,
        chosen=made[1],
        nearest=None,
        is_sure=True,
        says="slim + int8",
    )


def test_rows_begin_with_the_original_and_the_chosen(result):
    rows = result.rows()
    assert [row["model"] for row in rows] == ["original", "slim + int8", "int8", "slim"]
    assert rows[1][""] == "chosen"
    assert rows[1]["faster, batch 1"] == "5.00x"
    assert rows[1]["agreement"] == "99.50% (1 lost, 0 won of 200)"
    assert rows[3]["result"] == "stopped: too slow"


def test_values_say_how_much_faster_and_smaller(result):
    values = result.values()
    assert (values["times_faster"], values["times_smaller"], values["drop_points"]) == (5.0, 10.0, 0.5)


def test_a_busy_machine_is_told_of(result):
    assert result.noise() == ""

    def disturbed(candidate, share):
        timings = [msgspec.structs.replace(t, runs=100, interrupted=share) for t in candidate.timings]
        return msgspec.structs.replace(candidate, timings=timings)

    parts = {"original": disturbed(result.original, 0.2), "chosen": disturbed(result.chosen, 0.4)}
    busy = msgspec.structs.replace(result, **parts)
    assert busy.interrupted == pytest.approx(0.3)
    assert busy.noise().startswith("other programs took the processor during 30% of the timed runs")


def test_the_picture_is_a_png_that_is_the_same_for_equal_results_and_clear_on_any_ground(result, tmp_path):
    from matplotlib import image

    path = tmp_path / "report.png"
    result.draw(path)
    pixels = image.imread(io.BytesIO(path.read_bytes()))
    assert pixels.shape[0] > 400
    assert pixels[0, 0, 3] == 0.0, "the ground must be transparent"
    again = tmp_path / "again.png"
    result.draw(again)
    assert again.read_bytes() == path.read_bytes()


def test_text_of_the_picture_can_be_read_on_white_and_on_black():
    from argosy.compress import report

    for colour in (report._TEXT, report._BEST, report._OTHER, report._BASE):
        level = _luminance(colour)
        # WCAG 2.2, 1.4.11: at least 3 to 1 beside the ground; #0d1117 is what dark pages use.
        assert 1.05 / (level + 0.05) >= 3
        assert (level + 0.05) / (_luminance("#0d1117") + 0.05) >= 3


def test_only_png_is_drawn(result, tmp_path):
    with pytest.raises(Internal, match="PNG"):
        result.draw(tmp_path / "report.svg")


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
