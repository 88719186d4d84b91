"""Objects in S3, Azure Blob Storage, Google Cloud Storage, and whatever else obstore reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from argosy.core.config import allows_plain_http
from argosy.core.errors import ArgosyError, Conflict, Denied, InvalidInput, NotFound, Unavailable
from argosy.registry.store import check_key, check_prefix

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

T = TypeVar("T")

_PIECE_BYTES = 1 << 20


def open_cloud(url: str) -> CloudStore:
    """Open `s3://bucket/folder`, `az://container/folder` or `gs://bucket/folder`.

    Credentials, region and endpoint come from the environment, as obstore reads it (`AWS_…`, `AZURE_…`, `GOOGLE_…`).
    """
    from datetime import timedelta

    import obstore.exceptions
    from obstore.store import from_url

    if "@" in url or "?" in url:
        raise InvalidInput(
            "the URL of a store holds no credentials and no options",
            hint="set AWS_ACCESS_KEY_ID, AZURE_STORAGE_ACCOUNT_KEY or GOOGLE_APPLICATION_CREDENTIALS",
        )
    # Bounded, so that a cloud that hangs becomes an error and not a silence.
    options: dict[str, Any] = {
        # Options given here hide the environment's, so what it says of TLS is repeated.
        "client_options": {"timeout": "60s", "connect_timeout": "10s", "allow_http": allows_plain_http()},
        "retry_config": {"max_retries": 5, "retry_timeout": timedelta(seconds=60)},
    }
    try:
        return CloudStore(from_url(url, **options))
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise InvalidInput(f"{url!r} can't be opened: {_first_line(error)}") from error


class CloudStore:
    """An ObjectStore over an obstore client; create-if-absent is the service's own conditional write."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, key: str) -> bytes:
        """Return the bytes under `key`; raise NotFound."""
        import obstore

        return self._call(key, lambda: bytes(obstore.get(self._client, check_key(key)).bytes()))

    def pieces(self, key: str) -> Iterator[bytes]:
        """Yield the bytes under `key` as they arrive; raise NotFound."""
        import obstore

        stream = iter(self._call(key, lambda: obstore.get(self._client, check_key(key)).stream(_PIECE_BYTES)))
        while (piece := self._call(key, lambda: next(stream, None))) is not None:
            yield bytes(piece)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """Write `data` under a new `key`; raise Conflict if there is one.

        An answer lost on the way is retried below, so Conflict may also mean that this very call succeeded: who
        must know compares the bytes, as the log does.
        """
        import obstore

        self._call(key, lambda: obstore.put(self._client, check_key(key), data, mode="create", use_multipart=False))

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write `data` under `key`, whatever was there."""
        import obstore

        self._call(key, lambda: obstore.put(self._client, check_key(key), data, mode="overwrite"))

    def exists(self, key: str) -> bool:
        """Return whether something is under `key`."""
        import obstore

        try:
            self._call(key, lambda: obstore.head(self._client, check_key(key)))
        except NotFound:
            return False
        return True

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Return the keys in the folder `prefix`, sorted, those > `after`."""
        import obstore

        check_prefix(prefix)

        def fetch() -> list[str]:
            stream = obstore.list(self._client, prefix or None, offset=after or None)
            return [item["path"] for chunk in stream for item in chunk]

        # Services sort, a local folder does not; and `after` is not held to the prefix by all of them.
        return iter(sorted(key for key in self._call(prefix, fetch) if key > after and key.startswith(prefix)))

    def delete(self, key: str) -> None:
        """Remove what is under `key`; harmless when nothing is there."""
        import contextlib

        import obstore

        with contextlib.suppress(NotFound):
            self._call(key, lambda: obstore.delete(self._client, check_key(key)))

    def _call(self, key: str, action: Callable[[], T]) -> T:
        from obstore import exceptions

        try:
            return action()
        except ArgosyError:
            raise
        except FileNotFoundError as error:
            raise NotFound(f"there is nothing under '{key}'", key=key) from error
        except exceptions.AlreadyExistsError as error:
            raise Conflict(f"'{key}' exists already", key=key) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
            raise Denied(
                f"the store refuses access to '{key}': {_first_line(error)}", hint="check its credentials", key=key
            ) from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise Unavailable(f"the store did not answer for '{key}': {_first_line(error)}", key=key) from error


def _first_line(error: Exception) -> str:
    # obstore appends a dump of its own structures, which may hold request headers.
    return str(error).partition("\n")[0][:200]
