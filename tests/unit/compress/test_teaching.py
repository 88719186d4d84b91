import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from argosy.compress import pace, teaching
from argosy.compress.lessons import Insight, Lesson, Lessons
from argosy.compress.passes import Hopeless
from argosy.compress.quality import Samples
from argosy.compress.teaching import teach
from argosy.core.errors import InvalidInput
from argosy.core.progress import silent
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.formats.runner import load_runner
from compressed import Sentences, Steps, Stripes, bench_of, cnn, decoder, encoder, one_thread, onnx_of, steady, train

pytestmark = pytest.mark.capability("C4")

LESSON = Lesson(epochs=8, seconds=5.0, batch_size=16, learning_rate=5e-3, seed=0)


@pytest.fixture(autouse=True)
def _steady(monkeypatch):
    steady(monkeypatch)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return the bench of a network that knows its pictures."""
    with one_thread():
        path = tmp_path_factory.mktemp("teaching") / "model.onnx"
        path.write_bytes(onnx_of(train(cnn(), Stripes(), steps=30), Stripes()))
        return bench_of(path, Stripes())


def student_of(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()


def agreement(student, bench):
    x = torch.from_numpy(bench.samples.validation["x"])
    with torch.no_grad():
        got = student(x).argmax(1).numpy()
    return float((got == bench.samples.answers(bench.runner, bench.samples.validation).argmax(1)).mean())


def taught(student, bench, lesson=LESSON, **asked):
    return teach(student, bench.runner, bench.samples, lesson, asked.pop("report", silent), label="test", **asked)


def test_a_student_learns_the_originals_answers(pictures):
    student = student_of()
    before = agreement(student, pictures)
    done = taught(student, pictures)
    assert done["epochs"] == 8
    assert done["steps"] == 8 * 3
    assert before < 0.7
    assert agreement(student, pictures) > 0.9
    assert not student.training


def test_it_learns_from_the_original_without_any_labels(pictures):
    samples = pictures.samples
    kept = samples.train_y
    student = student_of()
    samples.train_y = None
    try:
        taught(student, pictures)
    finally:
        samples.train_y = kept
    assert agreement(student, pictures) > 0.9


def test_the_share_says_whether_the_original_or_the_labels_are_believed(pictures):
    samples, kept = pictures.samples, pictures.samples.train_y
    samples.train_y = (kept + 1) % 3  # labels that contradict the original
    found = {}
    try:
        for share in (0.0, 1.0):
            student = student_of()
            taught(student, pictures, msgspec.structs.replace(LESSON, soft_share=share))
            found[share] = agreement(student, pictures)
    finally:
        samples.train_y = kept
    assert found[1.0] > 0.9
    assert found[0.0] < 0.1


def test_a_seed_repeats_the_training_and_another_one_does_not(pictures):
    def weights(seed):
        student = student_of()
        student.insert(3, nn.Dropout(0.2))
        taught(student, pictures, msgspec.structs.replace(LESSON, epochs=2, seed=seed))
        return torch.cat([p.detach().flatten() for p in student.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_torch_is_left_as_it_was(pictures):
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    taught(student_of().train(), pictures, msgspec.structs.replace(LESSON, epochs=1))
    assert torch.get_num_threads() == threads
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    taught(student_of_without_seeding(), pictures, msgspec.structs.replace(LESSON, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def student_of_without_seeding():
    with torch.random.fork_rng(devices=[]):
        return student_of()


def test_a_training_that_diverges_is_refused(pictures):
    student = student_of()
    with torch.no_grad():
        student[1].weight.fill_(float("nan"))
    with pytest.raises(InvalidInput, match="diverged in epoch 1"):
        taught(student, pictures)
    assert not student.training


def test_a_student_without_weights_is_refused(pictures):
    frozen = student_of()
    for parameter in frozen.parameters():
        parameter.requires_grad_(requires_grad=False)
    with pytest.raises(InvalidInput, match="no weights that could be trained"):
        taught(frozen, pictures)


def test_a_row_that_is_left_over_alone_is_taken_with_others(tmp_path):
    data = Stripes(49)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(cnn(4), data))
    done = taught(student_of(), bench_of(path, data), msgspec.structs.replace(LESSON, epochs=2, batch_size=16))
    assert done["steps"] == 2 * 3


@pytest.mark.parametrize(("count", "size"), [(48, 16), (49, 16), (50, 16), (5, 16), (1, 16), (3, 1), (17, 16)])
def test_every_row_is_read_once_in_an_epoch_and_no_batch_of_one_is_left(tmp_path, count, size):
    data = Stripes(count)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(cnn(4), Stripes()))
    bench = bench_of(path, data)
    lessons = Lessons(
        bench.runner, bench.samples, bench.samples.train, msgspec.structs.replace(LESSON, batch_size=size)
    )
    batches = list(lessons.epoch(0))
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert len(batches) == lessons.batches
    assert all(len(rows) > 1 for rows in batches) or min(count, size) == 1
    assert [list(rows) for rows in lessons.epoch(0)] == [list(rows) for rows in batches]
    assert count < 5 or [list(rows) for rows in lessons.epoch(1)] != [list(rows) for rows in batches]


def test_progress_is_told_and_steps_are_counted(pictures, monkeypatch):
    monkeypatch.setattr(teaching, "seldom", lambda report: report)
    news, progress = [], []
    taught(
        student_of(),
        pictures,
        msgspec.structs.replace(LESSON, epochs=2),
        report=news.append,
        after_step=progress.append,
    )
    assert progress == [pytest.approx((n + 1) / 6) for n in range(6)]
    assert news.pop(0).message == "test: asking the original"
    assert [one.done for one in news] == [1, 2, 3, 4, 5, 6]
    assert {one.total for one in news} == {6}
    assert news[-1].message.startswith("test: epoch 2 of 2, loss ")


def test_without_a_number_of_epochs_time_says_how_many(pictures):
    # `steady` says that a step takes 10 ms, of which three make an epoch.
    for seconds, epochs in ((0.31, 10), (0.001, 1), (50, 30)):
        lesson = msgspec.structs.replace(LESSON, epochs=0, seconds=seconds)
        assert taught(student_of(), pictures, lesson)["epochs"] == epochs


def test_where_an_epoch_takes_too_long_a_part_of_it_is_learned(pictures, monkeypatch):
    monkeypatch.setattr(pace, "_FEWEST_STEPS", 2)
    # A step takes 10 ms, so two of the three of an epoch fit.
    lesson = msgspec.structs.replace(LESSON, epochs=0, seconds=0.021)
    done = taught(student_of(), pictures, lesson)
    assert (done["steps"], done["epochs"]) == (2, 0.67)


def test_a_training_that_turns_out_slower_than_planned_is_made_shorter(pictures, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)

    def after_step(share):
        clock.now += 0.1
        shares.append(share)

    shares = []
    # 30 steps of 10 ms are planned; each takes 100.
    lesson = msgspec.structs.replace(LESSON, epochs=0, seconds=0.301)
    done = taught(student_of(), pictures, lesson, after_step=after_step)
    assert done["steps"] == 5
    assert shares[-1] == 1.0
    given = msgspec.structs.replace(LESSON, epochs=10, seconds=0.301)
    assert taught(student_of(), pictures, given, after_step=after_step)["steps"] == 30


def test_a_trial_sees_the_student_as_it_is_and_can_end_the_training(pictures):
    seen = []

    def trial(runner, share):
        before = len(done)
        answers = pictures.samples.answers(runner, pictures.samples.validation)
        seen.append((share, before, answers))
        if share == 0.5:
            raise Hopeless("no", 0.5)

    done = []
    student = student_of()
    with pytest.raises(Hopeless):
        taught(student, pictures, after_step=done.append, trial=trial)
    assert [(share, steps) for share, steps, _ in seen] == [(0.25, 6), (0.5, 12)]
    with torch.no_grad():
        wanted = student(torch.from_numpy(pictures.samples.validation["x"])).numpy()
    np.testing.assert_allclose(seen[1][2], wanted, rtol=1e-4, atol=1e-5)


def test_trials_leave_what_is_learned_as_it_is(pictures):
    plain, tried = student_of(), student_of()
    taught(plain, pictures)
    taught(tried, pictures, trial=lambda runner, _: pictures.samples.glimpse(runner))
    for a, b in zip(plain.state_dict().values(), tried.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("is_running_text", [False, True])
def test_texts_of_like_lengths_share_a_batch_and_are_learned(tmp_path, is_running_text):
    data = Steps() if is_running_text else Sentences()
    with one_thread():
        module = train(decoder(layers=1) if is_running_text else encoder(layers=1), data, steps=40, rate=1e-2)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(module, data))
    bench = bench_of(path, data)
    student = decoder(16, 1) if is_running_text else encoder(16, 1)
    lesson = msgspec.structs.replace(LESSON, epochs=12, learning_rate=1e-2)

    def quality():
        content = onnx_of(student, data)
        return bench.samples.judge(OnnxRunner.load(content)).value

    before = quality()
    taught(student, bench, lesson)
    after = quality()
    if is_running_text:
        assert after < 0.5 * before, "perplexity"
        return
    assert after > before + 0.2
    lengths = bench.samples.train["attention_mask"].sum(axis=1)
    lessons = Lessons(bench.runner, bench.samples, bench.samples.train, lesson)
    spans = [np.ptp(lengths[rows]) for rows in lessons.epoch(0)]
    assert sorted(np.concatenate(list(lessons.epoch(0)))) == list(range(len(lengths)))
    assert max(spans) <= 3, "padding costs as much as words"


def test_vectors_are_learned_from_their_tokens(tmp_path):
    class Vectors(Sentences):
        task = "embedding"

        def prepared(self, split):
            return super().prepared(split)[0], None

        def vectors(self, outputs, prepared):
            mask = prepared["attention_mask"][..., None]
            return (outputs["logits"] * mask).sum(1) / mask.sum(1)

    class Tokens(nn.Module):
        def __init__(self, width):
            super().__init__()
            torch.manual_seed(width)
            self.table, self.mix = nn.Embedding(24, width), nn.Linear(width, 8)

        def forward(self, ids, mask):
            return self.mix(torch.tanh(self.table(ids))) * mask.unsqueeze(2)

    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(Tokens(32), Vectors()))
    bench, student = bench_of(path, Vectors()), Tokens(8)

    def cosine():
        return bench.samples.judge(load_runner("onnx", onnx_of(student, Vectors()))).value

    before = cosine()
    taught(student, bench, msgspec.structs.replace(LESSON, epochs=20, learning_rate=2e-2))
    assert before < 0.6
    assert cosine() > 0.9


def test_numbers_are_learned_too(tmp_path, linear_onnx):
    class Line:
        task, digest = "regression", "sha256:" + "1" * 64

        def prepared(self, split):
            x = np.random.default_rng(len(split)).normal(size=(80, 4)).astype(np.float32)
            return {"x": x}, x[:, 0]

    path = tmp_path / "line.onnx"
    path.write_bytes(linear_onnx(np.eye(4, 1) * np.ones((1, 3))))
    samples = Samples(Line(), OnnxRunner.load(path))
    torch.manual_seed(0)
    student = nn.Linear(4, 3)
    teach(
        student,
        OnnxRunner.load(path),
        samples,
        msgspec.structs.replace(LESSON, epochs=40, learning_rate=0.05),
        silent,
        label="test",
    )
    assert student.weight[0].detach().numpy() == pytest.approx([1, 0, 0, 0], abs=0.05)


def test_what_is_fastest_here_is_found_without_moving_the_student(pictures, monkeypatch):
    monkeypatch.undo()
    student = student_of().train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    threads = torch.get_num_threads()
    insight = Insight.of(pictures.runner, pictures.samples, None)
    lessons = Lessons(pictures.runner, pictures.samples, pictures.samples.train, LESSON, insight)
    with pace.fastest(student, lessons) as (context, step_s):
        assert 0 < step_s < 60
        with context():
            assert torch.isfinite(lessons.loss(student, next(iter(lessons.epoch(0)))))
    assert torch.get_num_threads() == threads
    assert student.training
    # Batch norm's statistics moved with the one step above in training mode, and not with the ones that were timed.
    assert student[2].num_batches_tracked == before["2.num_batches_tracked"] + 1
    assert all(torch.equal(before[name], value) for name, value in student.named_parameters())


def test_parts_that_are_mapped_from_files_and_cannot_be_written_to_are_learned_without_a_word(tmp_path, recwarn):
    class Mapped(Stripes):
        def prepared(self, split):
            inputs, y = super().prepared(split)
            for array in (*inputs.values(), y):
                array.setflags(write=False)
            return inputs, y

    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(cnn(), Mapped()))
    bench = bench_of(path, Mapped())
    before = torch.is_warn_always_enabled()
    recwarn.clear()
    torch.set_warn_always(True)
    try:
        taught(student_of(), bench, msgspec.structs.replace(LESSON, epochs=1))
    finally:
        torch.set_warn_always(before)
    assert not [str(told.message) for told in recwarn if "not writable" in str(told.message)]


def test_how_long_a_step_takes_is_measured_on_a_batch_of_usual_length(tmp_path):
    data = Sentences()
    path = tmp_path / "encoder.onnx"
    path.write_bytes(onnx_of(encoder(), data))
    bench = bench_of(path, data)
    inputs = bench.samples.train
    lengths = inputs["attention_mask"].sum(axis=1)
    lessons = Lessons(bench.runner, bench.samples, inputs, LESSON)
    rows, share = lessons.usual()
    costs = [len(batch) * lengths[batch].max() for batch in lessons.epoch(0)]
    assert share == pytest.approx(len(rows) * lengths[rows].max() / np.mean(costs))
    assert abs(share - 1) == pytest.approx(min(abs(cost / np.mean(costs) - 1) for cost in costs))
    assert max(costs) > 1.2 * np.mean(costs)


def test_the_optimizers_part_of_a_step_leaves_the_student_alone():
    student = student_of()
    before = [p.detach().clone() for p in student.parameters()]
    assert pace._update_s(student) > 0
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, student.parameters(), strict=True))
