import json
import subprocess
import sys

CODE = """
from argosy.core.logs import configure_logs, get_logger
configure_logs(process="test")

def read(body):
    raise ValueError("it can't be read")

try:
    read("what a caller sent")
except ValueError:
    get_logger().exception("reading_failed")
import sys
assert "rich" not in sys.modules
"""


def test_a_logged_error_says_where_but_not_with_which_values():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    line = json.loads(done.stderr)
    assert (line["event"], line["process"]) == ("reading_failed", "test")
    assert line["exception"][0]["frames"][-1]["name"] == "read"
    assert "what a caller sent" not in done.stderr
