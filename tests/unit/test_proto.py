"""The API's description against the list of what Kubernetes fixed, and the generated code against the description."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from crishim._proto.runtime.v1 import api_pb2

ROOT = Path(__file__).resolve().parents[2]
EXPECTED: dict[str, Any] = json.loads((ROOT / "tests/data/runtime-v1.json").read_text(encoding="utf-8"))
FILE = api_pb2.DESCRIPTOR
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_DOUBLE: "double",
}


def type_name(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            return f"map<{type_name(key)}, {type_name(value)}>"
        plain = field.message_type.full_name.removeprefix("runtime.v1.")
    elif field.enum_type is not None:
        plain = field.enum_type.full_name.removeprefix("runtime.v1.")
    else:
        plain = SCALARS[field.type]
    return f"repeated {plain}" if field.is_repeated else plain


def enum_values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def fields(message: Descriptor) -> list[dict[str, Any]]:
    result = []
    for field in message.fields:
        entry: dict[str, Any] = {"number": field.number, "name": field.name, "type": type_name(field)}
        for option in ("deprecated", "debug_redact"):
            if getattr(field.GetOptions(), option):
                entry[option] = True
        result.append(entry)
    return result


def test_services_and_streaming() -> None:
    assert FILE.package == EXPECTED["package"]
    seen: dict[str, list[dict[str, Any]]] = {}
    for name, service in FILE.services_by_name.items():
        for method in service.methods:
            entry: dict[str, Any] = {
                "rpc": method.name,
                "request": method.input_type.name,
                "response": method.output_type.name,
            }
            if method.server_streaming:
                entry["server_streaming"] = True
            assert not method.client_streaming
            seen.setdefault(name, []).append(entry)
    assert seen == EXPECTED["services"]
    assert sum(len(methods) for methods in seen.values()) == 43


def test_enums() -> None:
    assert {name: enum_values(enum) for name, enum in FILE.enum_types_by_name.items()} == EXPECTED["enums"]


def test_message_names() -> None:
    assert set(FILE.message_types_by_name) == set(EXPECTED["messages"])


@pytest.mark.parametrize("name", sorted(EXPECTED["messages"]))
def test_message(name: str) -> None:
    message = FILE.message_types_by_name[name]
    wanted = EXPECTED["messages"][name]
    assert fields(message) == wanted["fields"]
    nested = {enum.name: enum_values(enum) for enum in message.enum_types}
    assert nested == wanted.get("enums", {})


@pytest.mark.parametrize("path", sorted((ROOT / "proto").rglob("*.proto")), ids=lambda path: str(path.name))
def test_every_definition_is_commented(path: Path) -> None:
    previous = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if re.match(r"(message|enum|service|rpc|oneof) |.* = \d+( \[.*\])?;$", text) and not text.startswith("//"):
            assert previous.startswith("//"), f"{path.name}:{number}: {text} has no comment"
        previous = text


def test_generated_code_is_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts/protos"), "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_lower_bounds_reach_the_generator() -> None:
    """Generated code refuses a runtime that is older than its generator, so the bounds must not promise one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.split(">=", line, maxsplit=1) for line in project["dependencies"])
    generated = ROOT / "crishim/_proto/runtime/v1"
    protobuf = re.search(r"^# Protobuf Python Version: (\S+)$", (generated / "api_pb2.py").read_text(), re.MULTILINE)
    grpcio = re.search(r"^GRPC_GENERATED_VERSION = '(.+)'$", (generated / "api_pb2_grpc.py").read_text(), re.MULTILINE)
    assert protobuf is not None
    assert grpcio is not None
    assert version(bounds["protobuf"]) >= version(protobuf[1])
    assert version(bounds["grpcio"]) >= version(grpcio[1])


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
