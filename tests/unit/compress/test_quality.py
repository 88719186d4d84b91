import numpy as np
import pytest

from argosy.compress.quality import Samples, answers
from argosy.core.errors import InvalidInput
from argosy.formats.onnx_runtime import OnnxRunner


class Fixed:
    """A runner that gives prepared logits for the known inputs."""

    def __init__(self, samples_of, flipped=(), seen=()):
        self.parts = samples_of
        self.flipped = {len(samples_of.validation_y): flipped, len(samples_of.train_y): seen}
        self.signature = OnnxRunner.load(samples_of.onnx).signature

    def run(self, inputs):
        y = np.argmax(inputs["x"], axis=1)
        logits = np.eye(3, dtype=np.float32)[y]
        for item in self.flipped.get(len(y), ()):
            logits[item] = np.roll(logits[item], 1)
        return {"logits": logits}


@pytest.fixture
def parts(blobs, linear_onnx):
    class Parts:
        data = blobs(train=90, validation=150)
        onnx = linear_onnx()
        train_y, validation_y = data.prepared("train")[1], data.prepared("validation")[1]

    return Parts


def test_equal_answers_lose_nothing_and_that_is_sure_to_a_point_for_150_items(parts):
    quality = Samples(parts.data, Fixed(parts)).judge(Fixed(parts))
    assert (quality.value, quality.drop, quality.agreement, quality.lost, quality.won) == (1.0, 0.0, 1.0, 0, 0)
    assert 0 < quality.drop_high < 0.01


def test_lost_and_won_items_are_counted_apart(parts):
    quality = Samples(parts.data, Fixed(parts, flipped=(1, 2, 3))).judge(Fixed(parts, flipped=(3, 4)))
    assert (quality.lost, quality.won) == (1, 2)
    assert quality.drop == pytest.approx(-1 / 150)
    # Item 3 is wrong in both in the same way, so three items differ.
    assert quality.agreement == pytest.approx(1 - 3 / 150)


@pytest.mark.parametrize("items", [40, 150, 1000])
def test_a_glimpse_tells_about_the_same_as_the_whole_judgement(parts, blobs, linear_onnx, items):
    samples = Samples(blobs(train=90, validation=items), OnnxRunner.load(parts.onnx))
    # One of the three classes is never seen.
    blind = OnnxRunner.load(linear_onnx(np.eye(4, 3) * [1, 1, -9]))
    assert samples.judge(blind).drop > 0.2
    drop, error = samples.glimpse(blind)
    assert drop == pytest.approx(samples.judge(blind).drop, abs=0.08)
    looked_at = len(range(0, items, -(-items // 128)))
    assert error == pytest.approx((drop * (1 - drop) / looked_at) ** 0.5)
    assert samples.glimpse(OnnxRunner.load(parts.onnx)) == (0.0, 0.0)


def test_how_much_the_original_errs_is_what_it_is_short_of_the_best(parts):
    assert Samples(parts.data, Fixed(parts)).own_error == 0.0
    assert Samples(parts.data, Fixed(parts, flipped=range(30))).own_error == pytest.approx(0.2)


def test_what_the_original_knows_by_heart_is_no_loss_of_a_model_that_does_not(parts):
    errs = range(60)
    overfitted, student = Fixed(parts, flipped=errs), Fixed(parts, flipped=errs, seen=range(30))
    assert Samples(parts.data, overfitted).judge(student).seen_drop == pytest.approx(30 / 90 - 60 / 150)
    # One that is as good on others has nothing by heart: what is lost there is lost.
    sound, worse = Fixed(parts), Fixed(parts, seen=range(30))
    assert Samples(parts.data, sound).judge(worse).seen_drop == pytest.approx(30 / 90)


def test_the_bound_widens_with_each_difference_and_with_fewer_items(parts, blobs):
    samples = Samples(parts.data, Fixed(parts))
    bounds = [samples.judge(Fixed(parts, flipped=range(lost))).drop_high for lost in range(4)]
    assert bounds == sorted(bounds)
    assert bounds[1] > 0.01
    surely = [samples.judge(Fixed(parts, flipped=range(lost))).drop_surely for lost in range(4)]
    assert all(more > less for more, less in zip(surely, bounds, strict=True))
    parts.data = blobs(validation=30)
    parts.validation_y = parts.data.prepared("validation")[1]
    assert Samples(parts.data, Fixed(parts)).judge(Fixed(parts)).drop_high > bounds[0]


def test_the_bound_holds_as_often_as_it_says():
    # 20 % of draws may exceed it; candidates that lose 1 % and win nothing, on 300 items.
    from argosy.evaluate.intervals import paired_drop

    random = np.random.default_rng(5)
    missed = 0
    for _ in range(400):
        lost = random.random(300) < 0.01
        missed += paired_drop(np.ones(300, bool), ~lost, 0.6)[2] < 0.01
    assert missed / 400 <= 0.25


def test_a_regression_is_judged_by_r2_and_items_by_the_spread_of_the_truth(linear_onnx):
    class Line:
        task, digest = "regression", "sha256:" + "1" * 64

        def prepared(self, split):
            x = np.random.default_rng(1).normal(size=(80, 4)).astype(np.float32)
            return {"x": x}, x[:, 0]

    exact = OnnxRunner.load(linear_onnx())
    samples = Samples(Line(), exact)
    same = samples.judge(exact)
    assert (same.measure, same.value, same.drop, same.agreement) == ("r2", 1.0, 0.0, 1.0)
    half = samples.judge(OnnxRunner.load(linear_onnx(np.eye(4, 3) * 0.5)))
    # Half of the signal: a quarter of its variance is unexplained; the mean is not exactly 0.
    assert half.drop == pytest.approx(0.25, abs=0.01)
    assert half.agreement < 0.3
    assert half.drop_high > half.drop


def test_a_single_logit_decides_between_two_classes(linear_onnx):
    class Signs:
        task, digest = "classification", "sha256:" + "2" * 64

        def prepared(self, split):
            x = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
            return {"x": x}, (x[:, 0] > 0).astype(np.int64)

    one = OnnxRunner.load(linear_onnx())

    class OneLogit:
        signature = one.signature

        def run(self, inputs):
            return {"logits": one.run(inputs)["logits"][:, :1]}

    assert Samples(Signs(), OneLogit()).judge(OneLogit()).value == 1.0


@pytest.mark.parametrize("part", ["train", "validation"])
def test_an_empty_part_is_refused(blobs, linear_onnx, part):
    with pytest.raises(InvalidInput, match="part of the data is empty"):
        Samples(blobs(**{part: 0}), OnnxRunner.load(linear_onnx()))


def test_answers_that_are_no_numbers_are_refused(blobs, linear_onnx):
    samples = Samples(blobs(), OnnxRunner.load(linear_onnx()))
    with pytest.raises(InvalidInput, match="not finite"):
        samples.judge(OnnxRunner.load(linear_onnx(np.full((4, 3), np.nan))))


def test_answers_come_in_batches_and_whole(linear_onnx):
    x = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    assert np.allclose(answers(OnnxRunner.load(linear_onnx()), {"x": x}), x[:, :3], atol=1e-6)


def test_a_vector_is_lost_when_it_is_another_and_not_when_it_has_moved_a_little(linear_onnx):
    class Vectors:
        task, digest = "embedding", "sha256:" + "8" * 64

        def prepared(self, split):
            return {"x": np.random.default_rng(len(split)).normal(size=(40, 4)).astype(np.float32)}, None

        def vectors(self, outputs, prepared):
            return outputs["logits"]

    whole = OnnxRunner.load(linear_onnx())
    samples = Samples(Vectors(), whole)
    near = samples.judge(OnnxRunner.load(linear_onnx(np.eye(4, 3) + 0.001)))
    assert (near.measure, near.lost, near.won, near.agreement) == ("cosine", 0, 0, 1.0)
    assert 0 < near.drop < 0.001
    far = samples.judge(OnnxRunner.load(linear_onnx(np.roll(np.eye(4, 3), 1, axis=1))))
    assert far.lost == round((1 - far.agreement) * 40) > 20
