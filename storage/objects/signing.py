"""Whether requests to S3 are signed: `AWS_NO_SIGN_REQUEST=YES` reads buckets that anybody may read, without keys.

Only if it is said: a bucket of a mistyped name, or of a store that does not run, may be somebody else's on AWS.
"""

from __future__ import annotations

import os

NO_SIGN_REQUEST = "AWS_NO_SIGN_REQUEST"  # as GDAL has it; `aws` has an option of that name


def is_signed() -> bool:
    """What the environment says now."""
    return os.environ.get(NO_SIGN_REQUEST, "").lower() not in ("yes", "true", "1")
