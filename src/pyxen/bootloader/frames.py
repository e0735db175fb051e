"""What the worker says: frames of a kind, a length and that many bytes."""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = struct.Struct(">cI")
JSON: Final = b"J"
DATA: Final = b"D"
"""A piece of a file; an empty one is its end."""
ERROR: Final = b"E"
"""Text for the user."""

JSON_BYTES_MAX: Final = 4 << 20
ERROR_BYTES_MAX: Final = 64 << 10
DATA_BYTES_MAX: Final = 1 << 20
LIMITS: Final = {JSON: JSON_BYTES_MAX, DATA: DATA_BYTES_MAX, ERROR: ERROR_BYTES_MAX}
