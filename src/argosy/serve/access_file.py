"""The file in which a gateway keeps its access rules, so that it asks for keys before any controller has spoken."""

from pathlib import Path

import msgspec

from argosy.core.errors import ArgosyError
from argosy.core.files import write_atomic
from argosy.core.logs import get_logger
from argosy.serve.access import AccessRules

log = get_logger()


class AccessFile:
    """Where a gateway keeps its rules, so that after a restart it asks for keys before any controller has spoken."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, *, is_guarded: bool) -> AccessRules | None:
        """Return the rules of last time; None: not known, and so closed.

        `is_guarded`: whoever starts the gateway knows that a key is needed. Open only where the file (or its absence)
        and the starter agree on it.
        """
        try:
            rules = msgspec.json.decode(self._path.read_bytes(), type=AccessRules)
        except FileNotFoundError:
            return None if is_guarded else AccessRules(is_on=False)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("access_rules_unreadable", path=str(self._path), error=str(error))
            return None
        return rules if rules.is_on or not is_guarded else None

    def save(self, rules: AccessRules) -> None:
        """Keep the rules. Where that fails the former ones must go: they may hold a key that was revoked."""
        try:
            write_atomic(self._path, msgspec.json.encode(rules), mode=0o600)
        except (OSError, ArgosyError) as error:
            log.warning("access_rules_not_saved", error=str(error))
            try:
                self._path.unlink(missing_ok=True)
            except OSError as failed:
                log.warning("former_access_rules_not_removed", path=str(self._path), error=str(failed))
