"""Files of a web server, read as from somebody who may mean harm: https alone, known lengths, nothing half-written."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway

TIMEOUT = (15.0, 60.0)  # seconds to connect, and without a byte
_CHUNK = 1 << 16
_TRIES = 3  # of a file whose connection breaks while it arrives
_REDIRECTS = 5
_AWAY = (429, 500, 502, 503, 504)
# a server's own Retry-After could keep us for years
_RETRY = Retry(
    total=2,
    status_forcelist=_AWAY,
    allowed_methods=["GET"],
    backoff_factor=0.2,
    raise_on_status=False,
    respect_retry_after_header=False,
)


class WebFiles:
    """Files below `url`: https://, or plain http:// on this very machine. Certificates, redirects and proxies are those
    of `requests` (`REQUESTS_CA_BUNDLE`, `HTTPS_PROXY`).

    `headers` are sent along, but not to another server that this one leads to. The query of `url`, which may sign it,
    is sent and never shown.

    Raises `InputError` for another scheme, a password in the URL, a redirect to plain http, a refusal, and a body of
    another length than was announced; `StoreAway` for a server that cannot be reached or does not finish its answer;
    `FileNotFoundError` for a file that is not there.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, timeout: tuple[float, float] = TIMEOUT
    ) -> None:
        self._parts = urlsplit(url)
        self.url = urlunsplit(self._parts._replace(query="", fragment="", netloc=self._parts.netloc.rpartition("@")[2]))
        if self._parts.username or self._parts.password:
            raise InputError(f"{self.url}: a password in a URL ends up in logs; put it into ~/.netrc")
        loopback = is_loopback(self._parts.hostname)
        if self._parts.scheme != "https" and not (self._parts.scheme == "http" and loopback):
            raise InputError(f"{self.url}: only https:// is trusted with a model (http:// on this machine); use that")
        self._timeout = timeout
        self._session = requests.Session()
        self._session.max_redirects = _REDIRECTS
        self._session.headers.update({"Accept-Encoding": "identity", **(headers or {})})
        self._session.adapters.clear()  # plain http is not among what may be used, also where a redirect leads
        self._session.mount("https://", HTTPAdapter(max_retries=_RETRY))
        if loopback:
            self._session.mount("http://", _LoopbackAdapter(max_retries=_RETRY))

    def read(self, name: str, limit: int) -> bytes:
        """The whole file `name`, of at most `limit` bytes."""
        content = bytearray()
        for chunk in self._chunks(name, 0):
            content += chunk
            if len(content) > limit:
                raise InputError(f"{self._shown(name)}: has more than {limit} bytes; it is not what it should be")
        return bytes(content)

    def download(self, name: str, target: Path, size: int) -> None:
        """Get the file `name` of `size` bytes as `target`, in place only when it is whole; an empty `name` is `url`.

        What has arrived is kept as `target`.partial, and the next one resumes there. The caller knows the checksum.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        for attempt in range(1, _TRIES + 1):
            try:
                self._append(name, partial, size)
                break
            except StoreAway:
                if attempt == _TRIES:
                    raise
        if partial.stat().st_size != size:
            raise InputError(f"{self._shown(name)}: ends after {partial.stat().st_size} of {size} bytes")
        partial.replace(target)

    def download_whole(self, target: Path, limit: int) -> None:
        """Get `url` itself, of at most `limit` bytes, as `target`."""
        self._write(target, "wb", "", 0, limit)

    def _append(self, name: str, partial: Path, size: int) -> None:
        start = partial.stat().st_size if partial.exists() else 0
        if start > size:
            partial.unlink()
            start = 0
        if start < size or not partial.exists():
            self._write(partial, "ab", name, start, size)

    def _write(self, partial: Path, mode: str, name: str, start: int, limit: int) -> None:
        with partial.open(mode) as file:
            for chunk in self._chunks(name, start):
                if chunk is None:  # the server begins again
                    file.truncate(0)
                    file.seek(0)
                    continue
                file.write(chunk)
                if file.tell() > limit:
                    raise InputError(f"{self._shown(name)}: has more than {limit} bytes; it is not what it should be")

    def _chunks(self, name: str, start: int) -> Iterator[Any]:
        """The bytes from `start` on; None before them where the server sends the whole file all the same."""
        with self._answer(name, start) as answer:
            if start and not (
                answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            ):
                yield None
            yield from answer.iter_content(_CHUNK)

    @contextmanager
    def _answer(self, name: str, start: int) -> Iterator[requests.Response]:
        where = self._shown(name)
        headers = {"Range": f"bytes={start}-"} if start else {}
        with (
            _translated(where),
            self._session.get(self._address(name), headers=headers, stream=True, timeout=self._timeout) as answer,
        ):
            _check_status(where, answer)
            yield answer

    def _address(self, name: str) -> str:
        if not name:
            return urlunsplit(self._parts)
        return urlunsplit(self._parts._replace(path=f"{self._parts.path.rstrip('/')}/{quote(name)}"))

    def _shown(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url


class _LoopbackAdapter(HTTPAdapter):
    """Plain http to this machine and to no other, wherever a redirect leads."""

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        host = urlsplit(request.url or "").hostname
        if not is_loopback(host if isinstance(host, str) else None):
            raise requests.exceptions.InvalidSchema(f"plain http to {host!r}")
        return super().send(request, *arguments, **options)


def is_loopback(host: str | None) -> bool:
    """Whether a URL's host is this machine."""
    try:
        return host == "localhost" or (host is not None and ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False


def _check_status(where: str, answer: requests.Response) -> None:
    code = answer.status_code
    if code in (404, 410):
        raise FileNotFoundError(where)
    if code in _AWAY:
        raise StoreAway(f"{where}: the server fails ({code} {answer.reason}); try again later")
    if code >= 400:
        raise InputError(f"{where}: the server refuses ({code} {answer.reason}); check the URL and your access to it")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise InputError(f"{where}: the server packs what it sends, unasked; let it send files as they are")


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise InputError(
            f"{where}: no secure connection ({_first_line(error)}); is its certificate trusted (REQUESTS_CA_BUNDLE)?"
        ) from error
    except requests.exceptions.InvalidSchema as error:
        raise InputError(
            f"{where}: leads to another place than https:// ({_first_line(error)}); use a URL there"
        ) from error
    except requests.exceptions.TooManyRedirects as error:
        raise InputError(f"{where}: leads in a circle; check the URL") from error
    except (requests.exceptions.InvalidURL, UnicodeError) as error:
        raise InputError(f"{where}: is not a URL ({_first_line(error)})") from error
    except requests.RequestException as error:
        raise StoreAway(
            f"{where}: cannot be reached, or broke off ({_first_line(error)}); what has arrived is kept: try again"
        ) from error


def _first_line(error: Exception) -> str:
    """Without the query of a URL that `requests` repeats."""
    text = f"{type(error).__name__}: {error}".split("\n")[0]
    return text.partition("?")[0][:200]
