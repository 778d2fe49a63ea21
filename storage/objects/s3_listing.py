"""Listings of S3 that begin in the middle: their cost is that of what is new, not of all that is there."""

from __future__ import annotations

from typing import Any


def list_after(filesystem: Any, folder: str, after: str) -> dict[str, dict[str, int]]:
    """What `filesystem.find(folder, detail=True)` gives of the objects whose full names sort after `after`.

    Raises what s3fs raises.
    """
    bucket, _, prefix = folder.partition("/")
    asked: dict[str, str] = {"StartAfter": after.partition("/")[2]}
    found: dict[str, dict[str, int]] = {}
    while asked:
        answer = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **asked)
        found |= {f"{bucket}/{item['Key']}": {"size": item["Size"]} for item in answer.get("Contents", ())}
        more = answer.get("NextContinuationToken")
        asked = {"ContinuationToken": more} if more else {}
    return found
