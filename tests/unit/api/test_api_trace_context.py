from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferapi.api.trace_context import trace_parent
from inferapi.domain.tracing import TraceParent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (GOOD, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),  # random-trace-id, of the second level
        (f"00-{TRACE}-{SPAN}-fe", False),  # bits that mean nothing yet
        (f" \t{GOOD}\t ", True),
        (f"01-{TRACE}-{SPAN}-01", True),
        (f"01-{TRACE}-{SPAN}-01-what-comes-later", True),
        (f"cc-{TRACE}-{SPAN}-00-" + "x" * 456, False),
    ],
)
def test_a_good_header_is_the_callers_span(header, is_sampled):
    assert trace_parent([header]) == TraceParent(TRACE, SPAN, is_sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        TRACE,
        GOOD[:-1],
        GOOD + "0",
        f"{GOOD}-00",  # this version has no more fields
        f"{GOOD}-",
        f"{GOOD}\n",
        f"{GOOD},{GOOD}",
        GOOD.upper(),
        GOOD.replace("-", "_"),
        f"0-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",  # a digit of another script
        f"01-{TRACE}-{SPAN}-01what",
        f"cc-{TRACE}-{SPAN}-00-" + "x" * 457,  # 513 characters
    ],
)
def test_a_malformed_header_is_none(header):
    assert trace_parent([header]) is None


def test_no_header_is_none_and_so_are_two():
    assert trace_parent([]) is None
    assert trace_parent([GOOD, GOOD]) is None


@given(st.text())
def test_whatever_a_client_writes_is_a_span_with_ids_of_hexadecimal_digits_or_none(header):
    parent = trace_parent([header])
    assert parent is None or (len(parent.trace_id), len(parent.span_id)) == (32, 16)


@given(st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_what_has_the_form_of_a_header_keeps_its_ids(header):
    parent = trace_parent([header])
    version, trace, span, _ = header.split("-")
    if version == "ff" or not int(trace, 16) or not int(span, 16):
        assert parent is None
    else:
        assert parent is not None
        assert (parent.trace_id, parent.span_id) == (trace, span)
