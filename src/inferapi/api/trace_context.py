"""The header ``traceparent``, read strictly: W3C Trace Context, section 3.2."""

from __future__ import annotations

import re
from collections.abc import Sequence

from inferapi.domain.tracing import TraceParent

_LONGEST = 512  # characters; a later version may have more fields than the 55 of this one
_FIELDS = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01
_NO_VERSION = "ff"


def trace_parent(values: Sequence[str]) -> TraceParent | None:
    """What the request's ``traceparent`` headers say; ``None`` for none, for several, and for one that is malformed.

    A version that is not known yet is read as far as this one goes (section 4.3).
    """
    if len(values) != 1 or len(values[0]) > _LONGEST:
        return None
    found = _FIELDS.fullmatch(values[0].strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == _NO_VERSION or (version == "00" and more is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, is_sampled=bool(int(flags, 16) & _SAMPLED))
