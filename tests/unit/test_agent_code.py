"""The agent's program: its bytes are what its texts say, its numbers are the layout's, its file is an ELF."""

import re
import subprocess
from pathlib import Path

import pytest

from crishim.engine.agent import elf, layout
from crishim.linux.seccomp.tables import numbers
from tests.support.abilities import need_program
from tests.unit.test_engine_modules import FORBIDDEN, loaded

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / "crishim" / "engine" / "agent"
MACHINES = ("x86_64", "aarch64")
PACKAGES = {"x86_64": "binutils", "aarch64": "binutils-aarch64-linux-gnu"}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_bytes_are_what_the_text_says(machine: str) -> None:
    need_program("as" if machine == "x86_64" else f"{machine}-linux-gnu-as", PACKAGES[machine])
    done = subprocess.run([ROOT / "scripts" / "agent", "--print", machine], capture_output=True, check=True, text=True)
    assert bytes.fromhex(done.stdout) == elf.CODE[machine]


def constants(machine: str) -> dict[str, int]:
    text = (HOME / f"{machine}.s").read_text(encoding="ascii")
    return {name: int(value, 0) for name, value in re.findall(r"\.set (\w+), (\w+)", text)}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_texts_numbers_are_the_layouts_and_the_kernels(machine: str) -> None:
    table = numbers(machine)
    for name, value in constants(machine).items():
        if name.startswith("SYS_"):
            assert value == table[name.removeprefix("SYS_")], name
        elif name.endswith("_BIT"):
            assert 1 << value == getattr(layout, name.removesuffix("_BIT")), name
        else:
            assert value == getattr(layout, name), name


def test_both_texts_are_the_same_program() -> None:
    labels = {
        machine: re.findall(r"^(\w{2,}):", (HOME / f"{machine}.s").read_text(encoding="ascii"), re.MULTILINE)
        for machine in MACHINES
    }
    assert labels["x86_64"] == labels["aarch64"]
    assert len(labels["x86_64"]) > 15


@pytest.mark.parametrize("machine", MACHINES)
def test_the_file_is_a_static_elf_of_one_page(machine: str, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    path.write_bytes(elf.program(machine))
    reader = need_program("readelf", "binutils")
    text = subprocess.run([reader, "-hlW", path], capture_output=True, check=True, text=True).stdout
    assert "EXEC (Executable file)" in text
    assert "INTERP" not in text
    assert re.search(r"LOAD .* R E ", text)
    assert re.search(r"GNU_STACK .* RW ", text)
    assert path.stat().st_size < 4096


def test_a_keeper_loads_it_without_anything_large() -> None:
    names = sorted(path.stem for path in HOME.glob("*.py") if path.stem not in {"__init__", "show"})
    modules = loaded("import " + ", ".join([f"crishim.engine.agent.{name}" for name in names]))
    assert {name for name in modules if name in FORBIDDEN or name.partition(".")[0] in FORBIDDEN} == set()
    assert not any(name.startswith("crishim.engine.plan") for name in modules)


def test_an_unknown_machine_has_none() -> None:
    with pytest.raises(KeyError):
        elf.program("riscv64")
