"""What tests of every kind share."""

import pytest

from installed import Installed


@pytest.fixture
def installed(tmp_path):
    folder = tmp_path / "my project"
    folder.mkdir()
    argosy = Installed(tmp_path / "home", folder)
    yield argosy
    if argosy.home.exists():
        argosy("down")
