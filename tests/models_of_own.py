"""Sources of models of one's own, for tests, and ways to load them."""

import textwrap

from argosy.formats.python_runner import PythonRunner
from argosy.formats.python_spec import SPEC_FILE, PythonSpec

HEAD = """
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypedDict

import numpy as np

import argosy

"""

DOUBLE = """
class Answer(NamedTuple):
    y: Annotated[argosy.FP32, argosy.Shape(1)]

class Double(argosy.Model):
    def predict(self, x: Annotated[argosy.FP32, argosy.Shape(1)]) -> Answer:
        return Answer(x * 2)
"""


def source(text):
    """Return the bytes of a source file with the usual imports at its top."""
    return (HEAD + textwrap.dedent(text)).encode()


def files(text, entry="model.py", requires=(), **more):
    """Return the files of a version; `more` maps names, with `__` for the dot, to their content."""
    extra = {name.replace("__", "."): data.encode() if isinstance(data, str) else data for name, data in more.items()}
    spec = PythonSpec(entry=entry, requires=tuple(requires))
    return {entry.partition(":")[0]: source(text), SPEC_FILE: spec.encode(), **extra}


def load(text, **more):
    """Load a model from its source."""
    return PythonRunner.open(files(text, **more))


def publish(served, text, name="m", **more):
    """Publish a model of one's own in the registry of `served`, without the check before it."""
    from argosy.registry.versions import Evaluation, FileRef, Manifest

    content = files(text, **more)
    blobs = served.registry.blobs
    manifest = Manifest(
        name=name,
        created=0.0,
        role="imported",
        task="tensor",
        format="python",
        signature=PythonRunner.open(content).signature,
        files={key: FileRef(digest=blobs.put(data), size_bytes=len(data)) for key, data in content.items()},
        evaluation=Evaluation(kind="self-check", passed=True),
    )
    return served.registry.versions.publish(manifest)
