"""Names in paths, query strings and headers: what is accepted, and what is refused."""

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.serving import parameters
from nextvec.serving.refusal import RefusedError
from nextvec.wire.predictions import AppendQuery, PredictQuery


@given(st.text(max_size=80))
def test_a_name_is_letters_digits_dash_and_underscore(text: str) -> None:
    plain = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
    if 1 <= len(text) <= 64 and set(text) <= plain:
        assert parameters.named(text) == text
    else:
        with pytest.raises(RefusedError):
            parameters.named(text)


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1e2", "1.5", "0x1", "0", "١", "9" * 30, "1001", " 1", "1_0"])
def test_a_number_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parameters.query(urlencode({"k": text}).encode(), PredictQuery)


def test_lengths_must_add_up() -> None:
    assert parameters.lengths_of("1,2", 3) == [1, 2]
    for text in ("", "1,1", "3,0", "1,,2", "4,-1"):
        with pytest.raises(RefusedError):
            parameters.lengths_of(text, 3)


@pytest.mark.parametrize("text", ["0", "nan", "inf", "-5", "1e9", "x"])
def test_a_deadline_is_bounded(text: str) -> None:
    with pytest.raises(RefusedError):
        parameters.deadline(text, 1.0)


@given(st.integers(1, 2**62), st.integers(0, 1000), st.booleans(), st.sampled_from(["0", "1", "true", "false"]))
def test_a_query_is_read_as_it_was_sent(seq: int, k: int, named: bool, text: str) -> None:
    sent = {"seq": seq, "k": k, "text": text} | ({"incarnation": "0123456789abcdef"} if named else {})
    found = parameters.query(urlencode(sent).encode(), AppendQuery)
    assert (found.seq, found.k, found.text, found.rows) == (seq, k, text in ("1", "true"), False)
    assert (found.incarnation == "0123456789abcdef") == named


@pytest.mark.parametrize("text", [b"x=1", b"k=1&k=2", b"text=yes", b"text=", b"k", b"K=1", b"k=%31%00", b"rows=2", b"text=%ff"])
def test_a_query_that_an_operation_does_not_read_is_refused_in_one_line(text: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        parameters.query(text, PredictQuery)
    assert refused.value.status == 400
    assert "\n" not in str(refused.value)
