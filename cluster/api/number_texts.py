"""Which text stands for a number of a range: plain decimal digits, as regular expressions that JSON Schema and Python read alike."""

# Digits behind the point; more say nothing that a float keeps.
_MOST_DECIMALS = 17
_ANY = f"[0-9]{{0,{_MOST_DECIMALS}}}"
_ZEROS = f"(?:\\.0{{1,{_MOST_DECIMALS}}})?"
_FRACTION = f"(?:\\.[0-9]{{1,{_MOST_DECIMALS}}})?"


def integer_pattern(low: int, high: int, *, is_bare: bool = False) -> str:
    """Whole numbers from `low` to `high`, both included; zeros may stand behind a point, unless `is_bare`."""
    behind = "" if is_bare else _ZEROS
    return _anchored([f"{sign}(?:{digits}){behind}" for sign, digits in _signed(low, high)])


def number_pattern(low: float, high: float) -> str:
    """Numbers from `low` to `high`, both included. high: a whole number, and a negative `low` too."""
    whole, _, decimals = str(low).partition(".")
    first, begun, most = int(whole), decimals.rstrip("0"), int(high)
    assert most == high, high
    if first < 0:
        assert not begun, low
        return _anchored([f"-(?:{_from_zero(-first)})", _from_zero(most)])
    fraction = f"\\.{_at_least(begun)}" if begun else _FRACTION
    rest = [f"(?:{_range(first + 1, most - 1)}){_FRACTION}"] if first + 1 < most else []
    return _anchored([f"{first}{fraction}", *rest, f"{most}{_ZEROS}"])


def _anchored(alternatives: list[str]) -> str:
    return f"^(?:{'|'.join(alternatives)})$"


def _signed(low: int, high: int) -> list[tuple[str, str]]:
    """The digits of the negative ones and of the others."""
    below = [("-", _range(max(-high, 1), -low))] if low < 0 else []
    return [*below, *([("", _range(max(low, 0), high))] if high >= 0 else [])]


def _from_zero(most: int) -> str:
    return f"(?:{_range(0, most - 1)}){_FRACTION}|{most}{_ZEROS}" if most else f"0{_ZEROS}"


def _at_least(digits: str) -> str:
    """Digits behind the point that are at least these."""
    if not digits:
        return _ANY
    first, rest = digits[0], digits[1:]
    above = f"[{int(first) + 1}-9]{_ANY}|" if first < "9" else ""
    return f"(?:{above}{first}{_at_least(rest)})"


def _range(low: int, high: int) -> str:
    """The digits of the whole numbers from `low` to `high`, without zeros in front."""
    shortest, longest = len(str(low)), len(str(high))
    if shortest == longest:
        return _of_one_length(str(low), str(high))
    parts = [_of_one_length(str(low), "9" * shortest)]
    if longest - shortest > 1:
        parts.append(f"[1-9][0-9]{{{shortest},{longest - 2}}}")
    return "|".join([*parts, _of_one_length(f"1{'0' * (longest - 1)}", str(high))])


def _of_one_length(low: str, high: str) -> str:
    if low == high:
        return low
    left = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return _digit(low[0], high[0]) + (f"[0-9]{{{left}}}" if left else "")
    if low[0] == high[0]:
        return f"{low[0]}(?:{_of_one_length(low[1:], high[1:])})"
    parts = [f"{low[0]}(?:{_of_one_length(low[1:], '9' * left)})"]
    if int(high[0]) - int(low[0]) > 1:
        parts.append(f"{_digit(chr(ord(low[0]) + 1), chr(ord(high[0]) - 1))}[0-9]{{{left}}}")
    return "|".join([*parts, f"{high[0]}(?:{_of_one_length('0' * left, high[1:])})"])


def _digit(low: str, high: str) -> str:
    return low if low == high else f"[{low}-{high}]"
