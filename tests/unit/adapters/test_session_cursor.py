from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferapi.adapters.session_cursor import decode_cursor, encode_cursor
from inferapi.domain.errors import InvalidRequest

TIMES_S = st.floats(min_value=0, max_value=1e12)
IDS = st.text(alphabet=st.characters(codec="ascii", exclude_characters="\x00"), min_size=1, max_size=128)


@given(TIMES_S, IDS)
def test_a_cursor_says_exactly_where_a_page_ended(used_at_s, session_id):
    assert decode_cursor(encode_cursor(used_at_s, session_id)) == (used_at_s, session_id)


@given(TIMES_S, IDS)
def test_a_cursor_needs_no_escaping_in_a_url(used_at_s, session_id):
    cursor = encode_cursor(used_at_s, session_id)
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.text(max_size=60))
def test_any_text_is_a_cursor_as_it_would_be_written_or_refused(text):
    with suppress(InvalidRequest):
        assert encode_cursor(*decode_cursor(text)) == text


@pytest.mark.parametrize("used_at_s", [float("nan"), float("inf"), -1.0])
def test_times_that_are_none_are_refused(used_at_s):
    with pytest.raises(InvalidRequest):
        decode_cursor(encode_cursor(used_at_s, "s1"))


def test_an_endless_cursor_is_refused():
    with pytest.raises(InvalidRequest):
        decode_cursor(encode_cursor(1.0, "x" * 10_000))
