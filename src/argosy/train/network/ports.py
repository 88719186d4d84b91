"""Who listens on a port of this machine, as far as this user may see."""

from pathlib import Path

_LISTENING = "0A"


def listening_process(port: int) -> str:
    """Return a phrase that names the process which listens on `port`, or "another process" if it can't be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return "another process"
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            for entry in (folder / "fd").iterdir():
                if str(entry.readlink()) in inodes:
                    name = (folder / "comm").read_text().strip()
                    return f"process {folder.name} ({name})"
        except OSError:  # ended meanwhile, or another user's
            continue
    return "another process"


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == _LISTENING:
                found.add(fields[9])
    return found
