"""What a run says in a pipe: now and then how far it is, and everything that must be seen."""

from argosy.cli.output import Output
from argosy.cli.run_view import RunView
from argosy.core.clock import FakeClock
from argosy.core.progress import Progress


def said(capsys, *news):
    clock = FakeClock()
    with RunView(Output(), clock, {"train": "train the model"}) as view:
        view(Progress(stage="train", message="started"))
        for one in news:
            clock.advance(1.0)
            view(one)
    return capsys.readouterr().out.splitlines()


def test_news_that_follow_closely_are_passed_over(capsys):
    lines = said(capsys, *(Progress(stage="train", message=f"epoch {n}/9") for n in range(1, 8)))
    assert [line.split()[-1] for line in lines] == ["model", "5/9"]


def test_a_note_has_a_line_of_its_own_whenever_it_comes(capsys):
    lines = said(
        capsys,
        Progress(stage="train", message="epoch 1/9"),
        Progress(stage="train", message="no log: [Errno 111] refused [/bold]", is_note=True),
        Progress(stage="train", message="epoch 2/9"),
    )
    assert lines[1:] == ["  train     no log: [Errno 111] refused [/bold]"]
