"""Whether requests are signed: `AWS_NO_SIGN_REQUEST=YES` reads buckets that anybody may read, without keys.

Only if it is said: a bucket of a mistyped name, or of a store that does not run, may be somebody else's on AWS.
"""

from __future__ import annotations

import os

# as GDAL has them; `aws` has an option of that name
NO_SIGN_REQUEST, GS_NO_SIGN_REQUEST, AZURE_NO_SIGN_REQUEST = (
    f"{vendor}_NO_SIGN_REQUEST" for vendor in ("AWS", "GS", "AZURE")
)


def is_signed(variable: str = NO_SIGN_REQUEST) -> bool:
    """What the environment says now."""
    return os.environ.get(variable, "").lower() not in ("yes", "true", "1")
