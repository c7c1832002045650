"""The token that admits a worker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UsageError
from protocol.join_token import make_secret, make_token, read_token

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


def test_token_gives_back_key_and_secret():
    secret = make_secret()
    assert read_token(make_token(KEY, secret)) == (KEY, secret)


def test_token_needs_no_quoting_in_a_shell():
    token = make_token(KEY, make_secret())
    assert all(character.isalnum() or character in "-_" for character in token)


def test_every_secret_is_another_and_one_secret_makes_one_token():
    first, second = make_secret(), make_secret()
    assert first != second
    assert make_token(KEY, first) == make_token(KEY, first) != make_token(KEY, second)


@pytest.mark.parametrize("change", [lambda t: "", lambda t: t[:-3], lambda t: t + "AAAA", lambda t: "ü" + t[1:]])
def test_damaged_token_is_refused_in_a_sentence(change):
    token = make_token(KEY, make_secret())
    with pytest.raises(UsageError, match="copy it whole"):
        read_token(change(token))


@given(st.text(max_size=120))
def test_any_text_is_a_token_or_a_usage_error(text):
    try:
        key, secret = read_token(text)
    except UsageError:
        return
    assert len(key) == 40
    assert len(secret) == 32


def test_key_alone_is_enough_for_who_was_let_in_before_and_for_nobody_else():
    token = make_token(KEY, "")
    assert read_token(token, may_lack_secret=True) == (KEY, "")
    with pytest.raises(UsageError, match="copy it whole"):
        read_token(token)
    with pytest.raises(UsageError, match="copy it whole"):
        read_token("", may_lack_secret=True)
