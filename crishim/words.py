"""What goes wrong while text is read, in words for the person who wrote the text; and any text in a form to be shown.

Python's own messages name codecs, functions and settings of the interpreter; the reader has a file with lines.
"""

import json
import re

_DIGITS = re.compile(r"[0-9]{1,18}")
_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


def unreadable(error: Exception, form: str = "JSON") -> str:
    """Return what is wrong with a text that was to be JSON (or TOML), for what its parser raised."""
    if isinstance(error, json.JSONDecodeError):
        return f"is not {form} (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"is not {form}: byte {error.start + 1} is not UTF-8"
    if isinstance(error, RecursionError):
        return f"is not {form}: it is nested too deeply"
    if type(error) is ValueError:  # int(), which takes 4300 digits
        return f"is not {form}: a number has too many digits"
    return f"is not {form}: {error}"


def number(text: str) -> int | None:
    """Return what up to 18 ASCII digits stand for; None for anything else.

    `str.isdigit` alone is true of `²`, which `int` refuses, as it refuses more than 4300 digits.
    """
    return int(text) if _DIGITS.fullmatch(text) else None


def shown(text: str) -> str:
    r"""Return text that UTF-8 can hold: a byte of a name that is not UTF-8 (PEP 383) is shown as \xNN, as repr would.

    What repr has made of such a byte is put right too.
    """
    clean = text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _BYTE.sub(r"\\x\1", clean) if "\\udc" in clean else clean
