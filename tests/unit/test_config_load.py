"""The configuration: what is read, what is refused, and on which line."""

import subprocess
import sys

import pytest

from crishim.config.checks import handler
from crishim.config.load import OPTIONS, changes, load, load_file, value
from crishim.config.model import Config
from crishim.config.render import default_text, render
from crishim.errors import InvalidArgumentError
from tests.support.surroundings import ABSENT


def refused(text: str, **overrides: object) -> list[str]:
    with pytest.raises(InvalidArgumentError) as caught:
        load(text, "c.toml", {key.replace("__", "."): item for key, item in overrides.items()})
    return str(caught.value).split("\n")


def test_default_file_parses_back_to_the_defaults() -> None:
    assert load(default_text(), "default") == Config()


def test_default_file_documents_every_option() -> None:
    text = default_text()
    for item in OPTIONS.values():
        assert (f"[{item.path}." if item.spec.table else f"\n{item.path.rpartition('.')[2]} = ") in text
        assert item.spec.help.endswith(".")
        assert len(item.spec.help) > 20


def test_effective_configuration_parses_back() -> None:
    config = load(
        'root = "/a/x"\n[log]\nfile = "/var/log/\\u00e9\\"q.log"\n[network]\nsubnets = ["fd00::/64"]\nmtu = 9000\n', ""
    )
    assert config.network.mtu == 9000
    assert load(render(config), "") == config


def test_file_and_flags() -> None:
    text = 'root = "/srv//crishim/"\ncgroup_parent = "/a/./b"\nlog = { level = "debug" }\nnetwork.bridge = "br7"\n'
    config = load(text, "c.toml", {"state": "/run/other", "log.level": "error"})
    assert config.root == "/srv/crishim"
    assert config.cgroup_parent == "/a/b"
    assert config.socket_path == "/run/other/crishim.sock"
    assert config.log.level == "error"
    assert config.network.bridge == "br7"
    assert config.paths.database == "/srv/crishim/state.db"


def test_unknown_key_names_the_line_and_the_nearest_key() -> None:
    text = '# a comment = 1\nroot = "/x"\n\n[network]\nbrige = "a"\n'
    assert refused(text) == ["c.toml:5: network.brige: unknown key, did you mean 'network.bridge'?"]


def test_key_in_the_wrong_section() -> None:
    assert refused('bridge = "a"\n') == ["c.toml:1: bridge: unknown key, did you mean 'network.bridge'?"]
    assert refused("[images]\nroot = 1\n") == ["c.toml:2: images.root: unknown key, did you mean 'root'?"]
    assert refused("[nothing.like_it]\nzzzz = 1\n")[0].startswith("c.toml:1: nothing: unknown key")
    assert refused('"log.level" = "debug"\n') == ["c.toml:1: log.level: unknown key, did you mean 'log.level'?"]


def test_section_given_as_a_value() -> None:
    assert refused("\nnetwork = 3\n") == ["c.toml:2: network: is a section, write [network] and its keys below it"]


def test_all_problems_are_reported_in_the_order_of_lines() -> None:
    text = (
        'state = 3\nbogus = """\n[x]\ny = 1\n"""\n'
        '[network]\nmtu = -1 # low\nsubnets = [\n  "10.0.0.0/8", # = x\n  7,\n]\n'
        '[log]\nlevel = "loud"\n'
    )
    assert refused(text) == [
        "c.toml:1: state: must be a string, is 3",
        "c.toml:2: bogus: unknown key, see 'crishim config default'",
        "c.toml:7: network.mtu: must be 0 or from 1280 to 65535, is -1",
        "c.toml:8: network.subnets: must be a list of strings, is ['10.0.0.0/8', 7]",
        "c.toml:13: log.level: must be one of debug, info, warning, error, is 'loud'",
    ]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ('root = "relative"', "c.toml:1: root: must be an absolute path"),
        ('root = "/"', "c.toml:1: root: must not be '/'"),
        ('root = "/a/../b"', "c.toml:1: root: must not hold '..'"),
        ('root = "/a\\nb"', "c.toml:1: root: must not hold control"),
        ('root = "/a"\nstate = "/a/run"', "c.toml:2: state: must not lie in root"),
        ('root = "/run/crishim/x"', "state: must not lie in root"),
        ('metrics_listen = "9539"', "c.toml:1: metrics_listen: must be HOST:PORT"),
        ('metrics_listen = "127.0.0.1:70000"', "c.toml:1: metrics_listen: must be HOST:PORT"),
        ('metrics_listen = "::1:9539"', "c.toml:1: metrics_listen: an IPv6 address needs brackets"),
        ('metrics_listen = "[::g]:9539"', "c.toml:1: metrics_listen: '::g' in"),
        ('socket = "/run/x/crio.sock"', "c.toml:1: socket: kubelet takes"),
        ("network = { bridge = 'way-too-long-name' }", "c.toml:1: network.bridge: must have at most 11"),
        ("[network]\nbridge = 'a/b'", "c.toml:2: network.bridge: must consist of"),
        ("[network]\nsubnets = []", "c.toml:2: network.subnets: must name at least one"),
        ("[network]\nsubnets = ['10.0.0.1/8']", "c.toml:2: network.subnets: must be a network"),
        ("[network]\nsubnets = ['10.0.0.0/31']", "c.toml:2: network.subnets: has no room"),
        ("[network]\nsubnets = ['127.0.0.0/8']", "c.toml:2: network.subnets: must be a unicast"),
        ("[network]\nsubnets = ['10.1.0.0/16', '10.2.0.0/16']", "c.toml:2: network.subnets: must name at most one"),
        ("[network]\nenabled = 1", "c.toml:2: network.enabled: must be true or false, is 1"),
        ("[runtime]\ndefault_rlimits = ['nofiles=3']", "c.toml:2: runtime.default_rlimits: 'nofiles' is no"),
        ("[runtime]\ndefault_rlimits = ['nofile=3:2']", "c.toml:2: runtime.default_rlimits: the soft limit"),
        ("[runtime]\ndefault_rlimits = ['nofile']", "c.toml:2: runtime.default_rlimits: must be NAME"),
        ("[runtime]\nexec_output_limit = 99999999999", "c.toml:2: runtime.exec_output_limit: must be at most"),
        ("cgroup_driver = 'systemd'", "c.toml:1: cgroup_driver: must be one of cgroupfs"),
        ("root = 'x'\nroot = 'y'\n", "c.toml:2: is not TOML: Cannot overwrite a value"),
        ("root = 'x'\nroot 'y'\n", "c.toml:2: is not TOML: "),
        ("root = ", "c.toml: is not TOML: Invalid value (at "),
        ("root = " + "9" * 5000, "c.toml: is not TOML: a number has too many digits"),
    ],
)
def test_refused(text: str, start: str) -> None:
    assert refused(text)[0].startswith(start)


@pytest.mark.parametrize(
    "text",
    [
        "[runtime.handlers.test-handler]\n[runtime.handlers.b]\n[runtime]\npids_limit = 7\n[limits]\n",
        "[runtime.handlers]\ntest-handler = {}\nb = {}\n[runtime]\npids_limit = 7\n",
        "runtime = { handlers = { test-handler = {}, b = {} }, pids_limit = 7 }\n",
        "runtime.handlers.test-handler = {}\nruntime.handlers.b = {}\nruntime.pids_limit = 7\n",
    ],
)
def test_a_table_of_names(text: str) -> None:
    config = load(text, "c.toml")
    assert (config.runtime.handlers, config.runtime.pids_limit) == (("test-handler", "b"), 7)
    written = render(config)
    assert "\n[runtime.handlers.test-handler]\n[runtime.handlers.b]\n" in written
    assert load(written, "c.toml") == config
    assert changes(config, load("runtime.pids_limit = 7", "")) == ((), ("runtime.handlers",))
    assert load("[runtime.handlers]\n", "").runtime.handlers == ()


def test_what_is_wrong_in_a_table_is_named_by_its_line() -> None:
    text = (
        "[runtime]\npids_limit = 7\n\n[runtime.handlers.good]\n\n[runtime.handlers.test]\n# why\nshim = 'x'\n"
        "seccomp_profile = '/y'\n[runtime.handlers.UP]\n[[runtime.handlers.list]]\n"
    )
    assert refused(text) == [
        "c.toml:8: runtime.handlers.test.shim: unknown key, [runtime.handlers.test] has none yet",
        "c.toml:9: runtime.handlers.test.seccomp_profile: unknown key, [runtime.handlers.test] has none yet",
        f"c.toml:10: runtime.handlers.UP: {handler('UP')}",
        "c.toml:11: runtime.handlers.list: must be a table, write [runtime.handlers.list]",
    ]
    for given in ("['test']", "'test'", "3"):
        assert refused(f"[runtime]\nhandlers = {given}\n") == [
            "c.toml:2: runtime.handlers: must be a table of names, write [runtime.handlers.NAME]"
        ]
    for name in ("", "-a", "a-", "a.b", "a_b", "a" * 64, "Kata"):
        assert refused(f"\n[runtime.handlers]\n'{name}' = {{}}\n")[0].startswith(
            f"c.toml:3: runtime.handlers.{name}: must be"
        )
    assert refused("[handlers.test]\n") == ["c.toml:1: handlers: unknown key, did you mean 'runtime.handlers'?"]


def test_a_flag_is_named_by_its_flag() -> None:
    assert refused("", network__subnets=["10.0.0.0/33"])[0].startswith("--subnet: must be a network")


def test_unreadable_files() -> None:
    with pytest.raises(InvalidArgumentError, match=rf"{ABSENT}/c.toml: cannot be read: No such file"):
        load_file(f"{ABSENT}/c.toml")
    with pytest.raises(InvalidArgumentError, match="cannot be read: Is a directory"):
        load_file("/")


def test_not_utf8(tmp_path: object) -> None:
    path = f"{tmp_path}/c.toml"
    with open(path, "wb") as file:
        file.write(b"# one\nroot = '\xff'\n")
    with pytest.raises(InvalidArgumentError, match=r"c.toml:2: is not UTF-8"):
        load_file(path)


def test_changes_tell_what_needs_a_restart() -> None:
    old = Config()
    new = load('root = "/other"\n[log]\nlevel = "debug"\n[images]\nparallel_pulls = 1\n', "")
    assert changes(old, new) == (("log.level", "images.parallel_pulls"), ("root",))
    assert changes(old, old) == ((), ())
    assert value(new, "log.level") == "debug"


def test_loading_imports_nothing_heavy() -> None:
    heavy = ("grpc", "asyncio", "sqlite3", "difflib", "structlog")
    code = f"import sys, crishim.config.load as l; l.load('', ''); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
