"""Repositories of a model hub (`hf://OWNER/NAME[@REVISION]`), through the library `huggingface_hub`, which is optional.

The library knows where the hub is (`HF_ENDPOINT`) and who asks (`HF_TOKEN`, or its own login); Larmor keeps neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway
from larmor.storage.objects.web_files import TIMEOUT, WebFiles

SCHEME = "hf://"
_PLACE = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubFiles:
    """The files of one commit of a repository: the newest of its revision when it is first asked.

    Raises (all methods) `InputError` for another form of URL, where the library is not installed, for a repository or
    revision that does not exist and for a refusal; `StoreAway` for a hub that cannot be reached.
    """

    def __init__(self, url: str) -> None:
        found = _PLACE.fullmatch(url)
        if not found:
            raise InputError(f"{url}: is no repository of a hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
        self.url = url
        self.repo, self.revision = found[1], found[2]
        try:
            import huggingface_hub
        except ModuleNotFoundError as error:
            raise InputError(f"{url}: needs huggingface_hub; pip install 'larmor-mri[hub]'") from error
        self._hub = huggingface_hub
        self._api = huggingface_hub.HfApi(library_name="larmor")
        WebFiles(self._api.endpoint)  # a token is sent there: no plain http

    def read(self, name: str, limit: int) -> bytes:
        """The whole file `name`, of at most `limit` bytes. Raises `FileNotFoundError` if it is not there."""
        return self._files.read(name, limit)

    def download(self, name: str, target: Path, size: int) -> None:
        """As `WebFiles.download`."""
        self._files.download(name, target, size)

    def names(self) -> list[str] | None:
        """The files of the newest commit; None if there is no such repository."""
        try:
            return [item.rfilename for item in self._info().siblings or ()]
        except FileNotFoundError:
            return None

    def commit(self, files: Mapping[str, Path], message: str, public: bool) -> str:
        """Put these files by one commit, making the repository (private unless `public`) if there is none; its URL.

        Raises `InputError` also if somebody else has committed since this object first looked.
        """
        exists = self.names() is not None
        with self._translated():
            if not exists:
                self._api.create_repo(self.repo, private=not public, exist_ok=True)
            if self.revision:
                self._api.create_branch(self.repo, branch=self.revision, exist_ok=True)
            operations = [self._hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
            done = self._api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                revision=self.revision,
                parent_commit=self._commit if exists else None,
            )
        return str(done.commit_url)

    @cached_property
    def _commit(self) -> str:
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            return str(self._info().sha)
        except FileNotFoundError as error:
            raise InputError(f"{self.url}: {error}; check the name, and whether HF_TOKEN may read it") from error

    @cached_property
    def _files(self) -> WebFiles:
        # not by the library's own download: it sets no limit to what a server sends
        headers = self._hub.utils.build_hf_headers(library_name="larmor")
        return WebFiles(f"{self._api.endpoint}/{self.repo}/resolve/{self._commit}", headers)

    def _info(self) -> Any:
        with self._translated():
            return self._api.model_info(self.repo, revision=self.revision, timeout=TIMEOUT[0])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        errors = self._hub.errors
        try:
            yield
        except errors.GatedRepoError as error:
            raise InputError(f"{self.url}: asks for consent to its terms; give it on the hub's page") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            kind = "revision" if isinstance(error, errors.RevisionNotFoundError) else "repository"
            raise FileNotFoundError(f"the hub has no such {kind}") from error
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if status >= 500 or status == 429:
                raise StoreAway(f"{self.url}: the hub fails ({_said(error)}); try again later") from error
            raise InputError(f"{self.url}: the hub refuses ({_said(error)}); check HF_TOKEN and its rights") from error
        except errors.HFValidationError as error:
            raise InputError(f"{self.url}: is no name of a repository ({_said(error)})") from error
        except (InputError, FileNotFoundError):
            raise
        except Exception as error:  # of the library's HTTP client, which differs between its versions
            raise StoreAway(
                f"{self.url}: the hub at {self._api.endpoint} cannot be reached ({_said(error)})"
            ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
