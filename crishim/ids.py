"""Identifiers of sandboxes and containers: 64 hexadecimal digits, as the field's tools expect."""

import secrets

ID_LENGTH = 64
SHORT_LENGTH = 13


def new_id() -> str:
    """Return a fresh random id of 64 hexadecimal digits."""
    return secrets.token_hex(ID_LENGTH // 2)


def short(identifier: str) -> str:
    """Return the first 13 digits, the length that crictl shows."""
    return identifier[:SHORT_LENGTH]


def is_id(text: str) -> bool:
    """Tell whether `text` is a full id."""
    return len(text) == ID_LENGTH and all(c in "0123456789abcdef" for c in text)
