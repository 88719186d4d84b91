import numpy as np
import pytest
import torch
from torch import nn

from argosy.compress.passes import Model
from argosy.compress.passes.slim import Slim, cut, fine_tune
from argosy.core.errors import InvalidInput

pytestmark = pytest.mark.capability("C2")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    """Channels that can only go together: a sum, batch norm, a grouped convolution and a flat end."""

    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.hidden = nn.Linear(4 * width, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x.reshape(-1, 1, 4, 4))))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        x = torch.nn.functional.max_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


X = torch.rand(2, 16)


def weights(module):
    return sum(p.numel() for p in module.parameters())


def test_half_of_the_channels_leave_about_a_quarter_of_the_weights():
    teacher = Residual().eval()
    student, skipped = cut(teacher, X, 0.5)
    assert skipped == []
    assert student.stem.out_channels == student.first.in_channels == 8
    assert student.hidden.in_features == 4 * 8
    assert 0.2 < weights(student) / weights(teacher) < 0.35


def test_the_original_is_left_as_it_was():
    teacher = Residual().eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    cut(teacher, X, 0.75)
    assert teacher.stem.out_channels == 16
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_output_keeps_its_shape_at_every_ratio():
    for ratio in (0.25, 0.625, 0.75):
        student, _ = cut(Residual().eval(), X, ratio)
        assert student(torch.rand(3, 16)).shape == (3, 5)


def test_the_same_cut_is_made_each_time():
    first, second = (cut(Residual().eval(), X, 0.5)[0] for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_channels_that_carry_nothing_go_first():
    teacher = Residual().eval()
    with torch.no_grad():
        dead = torch.arange(16) % 2 == 0
        for tensor in (teacher.first.weight, teacher.first.bias):
            tensor[dead] = 0
        teacher.second.weight[:, dead] = 0
    student, _ = cut(teacher, X, 0.5)
    assert torch.equal(student.first.bias, teacher.first.bias[~dead])


def test_wide_layers_keep_a_multiple_of_eight_and_thin_ones_a_minimum():
    wide, _ = cut(Residual(64).eval(), X, 0.625)
    assert wide.stem.out_channels % 8 == 0
    thin, _ = cut(Residual(8).eval(), X, 0.75)
    assert thin.stem.out_channels >= 4


class Rigid(nn.Module):
    """A layer whose width stands in the forward method."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 32)
        self.rigid = nn.Linear(32, 32)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.rigid(torch.relu(self.body(x)))).reshape(-1, 8, 4).mean(2))


def test_a_layer_that_cannot_be_cut_is_left_whole_and_listed():
    student, skipped = cut(Rigid().eval(), X, 0.5)
    assert student.rigid.out_features == 32
    assert student.body.out_features == 16
    assert student(X).shape == (2, 5)
    assert [entry.split(":")[0] for entry in skipped] == ["rigid"]


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        with torch.no_grad():
            return self.head(torch.from_numpy(self.layer(x).numpy()))


def test_a_model_that_hides_its_operations_stays_whole_and_is_refused_by_the_pass(tmp_path):
    student, _ = cut(Untraceable().eval(), X, 0.5)
    assert weights(student) == weights(Untraceable())

    class Bench:
        samples = type("S", (), {"train": {"x": X.numpy()}})

    with pytest.raises(InvalidInput, match="no channel could be taken out"):
        Slim().apply(Model(path=tmp_path, module=Untraceable), {"ratio": 0.5}, Bench)


class Tried:
    def __init__(self, ratio, drop, seconds=1.0):
        self.recipe = [("slim", {"ratio": ratio})]
        self.status, self.seconds = "measured", seconds
        self.quality = type("Q", (), {"drop": drop})


def test_ratios_follow_what_went_well():
    def proposed(*tried):
        found = Slim().propose(None, tried, [], 0.01)
        return found and found["ratio"]

    good, bad = 0.0, 0.2
    assert proposed() == 0.5
    assert proposed(Tried(0.5, good)) == 0.75
    assert proposed(Tried(0.5, bad)) == 0.25
    assert proposed(Tried(0.5, good), Tried(0.75, bad)) == 0.625
    assert proposed(Tried(0.5, bad), Tried(0.25, good)) == 0.375
    assert proposed(Tried(0.5, good), Tried(0.75, good)) is None
    assert proposed(Tried(0.5, bad), Tried(0.25, bad)) is None
    assert proposed(Tried(0.5, good), Tried(0.75, bad, seconds=60)) is None
    assert proposed(Tried(0.5, good), Tried(0.75, bad), Tried(0.625, good)) is None


@pytest.mark.capability("C4")
def test_fine_tuning_gives_the_thread_count_back_and_learns_the_teachers_answers():
    from argosy.train.config import TrainConfig

    torch.manual_seed(3)
    teacher, student = nn.Linear(16, 5), nn.Linear(16, 5)
    x = np.random.default_rng(0).normal(size=(96, 16)).astype(np.float32)
    with torch.no_grad():
        y = teacher(torch.from_numpy(x)).argmax(1).numpy()

    class Data:
        task, outputs, splits, finish, labels, tokenize = "classification", 5, {}, [], [], None

        def prepared(self, split):
            return {"x": x}, y

    class Bench:
        dataset = Data()
        samples = type("S", (), {"train": {"x": x}})
        train = TrainConfig(learning_rate=0.05, batch_size=32)
        epochs, seed = 15, 0

        @staticmethod
        def report(news):
            assert news.stage == "compress"

    threads = torch.get_num_threads()

    def agreement():
        with torch.no_grad():
            return float((student(torch.from_numpy(x)).argmax(1).numpy() == y).mean())

    before = agreement()
    fine_tune(student, teacher, Bench, label="slim 0.5")
    assert torch.get_num_threads() == threads
    assert not student.training
    assert before < 0.5
    assert agreement() > 0.9
