"""Which names a pickle of a scikit-learn model may ask for, and which a file does ask for. Standard library only."""

import pickletools
from pathlib import Path

_PACKAGES = ("sklearn", "scipy", "numpy", "joblib", "pandas")
# Parts of these that run code, load files or start processes.
_FORBIDDEN = (
    "numpy.f2py", "numpy.testing", "numpy.distutils", "numpy.lib", "numpy.ctypeslib", "scipy._lib", "scipy.io",
    "joblib.memory", "joblib.parallel", "joblib.externals", "joblib._parallel_backends", "pandas.io", "pandas.eval",
    "sklearn.utils._testing", "sklearn.externals", "sklearn.datasets",
)  # fmt: skip
_BUILTINS = frozenset((
    "set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "bool", "str", "bytes", "bytearray",
    "slice", "range", "object", "type",
))  # fmt: skip
_OTHERS = frozenset((
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "Counter"),
    ("copyreg", "_reconstructor"), ("functools", "partial"), ("re", "_compile"), ("operator", "itemgetter"),
    ("_codecs", "encode"), ("datetime", "datetime"), ("datetime", "date"), ("datetime", "timedelta"),
    ("numbers", "Number"), ("decimal", "Decimal"),
))  # fmt: skip
_MAX_SCANNED = 4 * 2**20
_MAX_OPERATIONS = 200_000


def is_known(module: str, name: str) -> bool:
    """Return whether a class or function is one that models of scikit-learn are made of."""
    if module == "builtins":
        return name in _BUILTINS
    if (module, name) in _OTHERS:
        return True
    is_scientific = module.partition(".")[0] in _PACKAGES and not module.startswith(_FORBIDDEN)
    return is_scientific and "." not in name and not name.startswith(("load", "save", "read", "exec", "eval", "import"))


def first_unknown(path: Path) -> str:
    """Return the first name in a pickle that no model needs; empty if none is seen. Nothing is loaded.

    joblib puts raw arrays between the operations, and compresses; what stands behind these is seen when it is loaded.
    """
    with path.open("rb") as stream:
        content = stream.read(_MAX_SCANNED)
    texts = _Texts()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if count > _MAX_OPERATIONS:
                break
            if operation.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
            elif operation.name == "STACK_GLOBAL":
                module, name = texts.pushed[-2:]
            else:
                texts.follow(operation.name, argument)
                continue
            texts.last = None
            if not is_known(module, name):
                return f"{module}.{name}"
    except Exception:  # noqa: BLE001 - it raises whatever the bytes make it raise; they are no pickle, or no plain one
        return ""
    return ""


class _Texts:
    """The texts that a pickle has put on its stack, also those it takes from its memory."""

    def __init__(self) -> None:
        self.pushed: list[str] = []
        self.last: str | None = None
        """What the operation before pushed, if that was a text."""
        self._memory: dict[int, str | None] = {}

    def follow(self, operation: str, argument: object) -> None:
        """Do what an operation does to texts."""
        if operation == "MEMOIZE":
            self._memory[len(self._memory)] = self.last
        elif operation in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memory[int(str(argument))] = self.last
        elif operation in ("GET", "BINGET", "LONG_BINGET"):
            self._push(self._memory.get(int(str(argument))))
        elif operation != "FRAME":
            self._push(argument if isinstance(argument, str) and operation.endswith("UNICODE") else None)

    def _push(self, text: str | None) -> None:
        self.last = text
        if text is not None:
            self.pushed.append(text)
