"""How s3fs is told to ask S3."""

from __future__ import annotations

from typing import Any

from larmor.storage.objects.signing import is_signed

# seconds; a store that goes away is waited for, one that is away at the start is a mistake
READ_TIMEOUT, READ_TIMEOUT_OF_CHECK = 30, 10


def s3_options(read_timeout: int) -> dict[str, Any]:
    """Options of `s3fs.S3FileSystem`; whether requests are signed is what the environment says now."""
    return {
        "anon": not is_signed(),
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": read_timeout,
            "max_pool_connections": 32,
            # ObjectStore tries again, the same way for every client
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            # newer checksum trailers break several S3-compatible stores
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    }
