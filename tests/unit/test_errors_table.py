"""The table from our errors to gRPC codes is complete and says what it should."""

import inspect

import grpc
import pytest

from crishim import errors
from crishim.server.errors import CODES, MAX_DETAILS, Refusal, code_of, printable, refusal

CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, errors.CrishimError)]


def test_every_error_has_a_row_and_no_row_is_left_over() -> None:
    assert set(CODES) == set(CLASSES)


def test_no_error_is_ok_and_only_those_that_kubelet_knows_by_their_first_word_are_unknown() -> None:
    assert grpc.StatusCode.OK not in CODES.values()
    assert [kind for kind, code in CODES.items() if code is grpc.StatusCode.UNKNOWN] == [
        errors.RegistryUnavailableError
    ]


def test_what_kubelet_compares_comes_without_a_status_before_it() -> None:
    ended = refusal(errors.RegistryUnavailableError("r.io/a:1: r.io: no connection"))
    assert (ended.code, ended.details) == (
        grpc.StatusCode.UNKNOWN,
        "RegistryUnavailable: r.io/a:1: r.io: no connection",
    )


def test_a_subclass_without_row_takes_its_base_class_row() -> None:
    class OddError(errors.NotFoundError):
        pass

    assert code_of(OddError("x")) is grpc.StatusCode.NOT_FOUND


def test_expected_errors_keep_their_sentence() -> None:
    ended = refusal(errors.InvalidArgumentError("config.metadata", "is missing"))
    assert (ended.code, ended.details) == (grpc.StatusCode.INVALID_ARGUMENT, "config.metadata: is missing")
    assert ended.incident == ""


def test_unexpected_errors_show_an_incident_only() -> None:
    ended = refusal(ZeroDivisionError("secret detail"))
    assert ended.code is grpc.StatusCode.INTERNAL
    assert ended.incident
    assert ended.details == f"internal error, see the log (id {ended.incident})"


def test_a_refusal_stays_itself() -> None:
    ended = Refusal(grpc.StatusCode.ABORTED, "x")
    assert refusal(ended) is ended


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("päth", "päth"),
        ("bad\udcff", "bad\\xff"),
        (repr("bad\udce9 \ud800"), "'bad\\xe9 \\ud800'"),
        ("x" * 5000, "x" * MAX_DETAILS + "…"),
        ("€" * 900, "€" * 444 + "…"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
