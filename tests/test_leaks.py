"""The search for secrets finds them, and nothing else."""

from __future__ import annotations

import base64
import zipfile
from pathlib import Path

import pytest

from larmor.storage.objects.object_store import ObjectStore
from tests.leaks import leaks

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY01"


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_whatever_it_is_wrapped_in(tmp_path: Path, before: str) -> None:
    text = f"{before}{SECRET} and more"
    (tmp_path / "plain").write_text(text)
    (tmp_path / "wide").write_text(text, encoding="utf-16-le")
    (tmp_path / "encoded").write_bytes(base64.b64encode(text.encode()))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", text * 9)
    (tmp_path / "harmless").write_text(text.replace("K7", "k7"))
    names = ["archive.zip/inside", "encoded", "plain", "wide"]
    assert leaks([SECRET], [tmp_path], {}) == [str(tmp_path / name) for name in names]
    store = ObjectStore(tmp_path)
    assert leaks([SECRET], [store], {"log": text, "other": "text"}) == [*(f"{store.url}/{n}" for n in names), "log"]
