"""Hooks of schemathesis, which loads this file: most requests name a model that there is, or none would get far."""

import os
import zlib

import schemathesis

MODEL = os.environ["FUZZED_MODEL"]


@schemathesis.hook
def before_call(context, case, kwargs):
    """Put the model's name in place of three names of four."""
    body = case.body
    name = body.get("model") if isinstance(body, dict) else None
    if isinstance(name, str) and zlib.crc32(name.encode("utf-8", "surrogatepass")) % 4:
        case.body = body | {"model": MODEL}
