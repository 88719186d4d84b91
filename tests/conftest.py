"""What tests of every kind share."""

import hypothesis
import pytest

from installed import Installed

# How long an example takes says something about the machine, not about what is tested.
hypothesis.settings.register_profile("argosy", deadline=None)
hypothesis.settings.load_profile("argosy")


@pytest.fixture
def installed(tmp_path):
    folder = tmp_path / "my project"
    folder.mkdir()
    argosy = Installed(tmp_path / "home", folder)
    yield argosy
    if argosy.home.exists():
        argosy("down")
