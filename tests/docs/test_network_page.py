"""The example on the page about exchanging between hosts runs."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "decisions" / "0012-network-exchange.md"


def test_the_example_of_two_ranks_runs_and_sums():
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    found = []
    # What the ranks end with is looked at where the page leaves it.
    code = code.replace("        pending.wait()\n", "        pending.wait()\n        found.append(gradients)\n")
    exec(compile(code, PAGE.name, "exec"), {"found": found})
    assert [set(values.tolist()) for values in found] == [{4.0}, {4.0}]
