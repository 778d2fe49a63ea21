"""S3 by s3fs: what is asked of it beyond what every file system does."""

from __future__ import annotations

from base64 import b64encode
from hashlib import md5
from typing import Any

from fsspec import filesystem

from larmor.storage.objects.s3_options import READ_TIMEOUT, READ_TIMEOUT_OF_CHECK, s3_options
from larmor.storage.objects.store_errors import StoreAway, in_conflict, lost_condition, not_removed

MULTIPART = 100 * 2**20  # s3fs puts what has twice its `chunksize` in several requests


class S3Remote:
    """See `Remote`."""

    most_removed = 1000  # S3's limit
    doubt = "is it an S3 store, and are AWS_ENDPOINT_URL and the region right?"

    def __init__(self) -> None:
        self.filesystem = filesystem("s3", **s3_options(READ_TIMEOUT))
        self.filesystem.retries = 1

    def look(self, place: str) -> None:
        bucket, _, prefix = place.partition("/")
        impatient = filesystem("s3", **s3_options(READ_TIMEOUT_OF_CHECK))
        impatient.retries = 2
        impatient.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)

    def find(self, folder: str, after: str = "") -> dict[str, dict[str, Any]]:
        """A listing of S3 may begin in the middle."""
        if not after:
            return dict(self.filesystem.find(folder, detail=True))
        bucket, _, prefix = folder.partition("/")
        asked: dict[str, str] = {"StartAfter": after.partition("/")[2]}
        found: dict[str, dict[str, Any]] = {}
        while asked:
            answer = self.filesystem.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **asked
            )
            found |= {f"{bucket}/{item['Key']}": {"size": item["Size"]} for item in answer.get("Contents", ())}
            more = answer.get("NextContinuationToken")
            asked = {"ContinuationToken": more} if more else {}
        return found

    def put(self, name: str, data: bytes, part_bytes: int | None = None, mark: str | None = None) -> None:
        """With the MD5 where one request brings the object.

        If a process is killed between head and body of a request, several stores keep an empty object in place of what
        was there; one that was told the MD5 refuses.
        """
        part_bytes = part_bytes or MULTIPART // 2
        options: dict[str, Any] = {"chunksize": part_bytes}
        if len(data) < 2 * part_bytes:
            options["ContentMD5"] = b64encode(md5(data, usedforsecurity=False).digest()).decode()
        if mark is None:
            self.filesystem.pipe_file(name, data, **options)
            return
        try:
            self.filesystem.pipe_file(name, data, mode="create", Metadata={"writer": mark}, **options)
        except OSError as error:
            if lost_condition(error):
                raise FileExistsError(name) from error
            if not in_conflict(error):
                raise
            if not self.filesystem.exists(name):
                raise StoreAway(f"s3://{name}: others write it at this moment ({error})") from error
            raise FileExistsError(name) from error

    def mark_of(self, name: str) -> str | None:
        bucket, _, key = name.partition("/")
        about = self.filesystem.call_s3("head_object", Bucket=bucket, Key=key)
        mark: str | None = about["Metadata"].get("writer")
        return mark

    def remove(self, names: list[str]) -> None:
        bucket = names[0].partition("/")[0]
        objects = {"Objects": [{"Key": name.partition("/")[2]} for name in names], "Quiet": True}
        answer = self.filesystem.call_s3("delete_objects", Bucket=bucket, Delete=objects)
        for error in answer.get("Errors", ()):  # the answer itself is a success
            raise not_removed(error)
