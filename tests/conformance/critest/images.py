"""The images that critest's specs ask for, as plans: pure, given a directory with the parts they are made of.

Names are those of critest's source (pkg/validate and pkg/framework of cri-tools v1.37.0), without the registry's
host. One image cannot be made: `test-image-digest` at a fixed public digest.
"""

import functools
import glob
import os
from collections.abc import Mapping, Sequence

from tests.conformance.critest.packages import run
from tests.support.layout import Entry, ImagePlan, architecture, directory, hardlink, symlink

_STAGING = "k8s-staging-cri-tools"
_E2E = "e2e-test-images"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FOLDERS = ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/run")
_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n"

_NGINX = """\
user www-data;
worker_processes 1;
error_log /dev/stderr notice;
pid /var/run/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log /dev/stdout;
    server {{ listen {port}; root /usr/share/nginx/html; }}
}}
"""
_HTTPD = """\
ServerRoot /usr/local/apache2
ServerName localhost
Listen 80
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule dir_module modules/mod_dir.so
PidFile /var/run/httpd.pid
User www-data
Group www-data
ErrorLog /dev/stderr
LogLevel info
DocumentRoot /usr/local/apache2/htdocs
<Directory /usr/local/apache2/htdocs>
    Require all granted
</Directory>
DirectoryIndex index.html
"""
_PAGE = b"<html><body><h1>It works!</h1></body></html>\n"

LIBRARIES = ("libc6", "libcrypt1", "zlib1g", "libpcre2-8-0")
NGINX_PACKAGES = ("nginx", "libssl3", *LIBRARIES)
HTTPD_PACKAGES = ("apache2-bin", "libapr1", "libaprutil1", "libexpat1", "libuuid1", *LIBRARIES)


def plans(parts: str) -> Mapping[str, ImagePlan]:
    """Return name:tag → plan.

    Args:
        parts: a directory with `busybox`, `pause` and `nonewprivs` (static programs) and the trees `nginx` and `httpd`
            (unpacked packages).
    """
    base = _base(parts)
    nginx = _nginx(f"{parts}/nginx")
    serve = {"Cmd": ["/usr/sbin/nginx", "-g", "daemon off;"]}
    return {
        "pause:3.9": ImagePlan([[_program(f"{parts}/pause", "pause")]], {"Entrypoint": ["/pause"]}),
        f"{_E2E}/busybox:1.29-2": _image(base, [], {"Cmd": ["sh"]}),
        f"{_E2E}/nginx:1.14-2": _image(base, [*nginx, _nginx_config(80)], serve),
        f"{_E2E}/httpd:2.4.39-4": _image(
            base, _httpd(f"{parts}/httpd"), {"Cmd": ["/usr/local/apache2/bin/httpd", "-D", "FOREGROUND"]}
        ),
        f"{_E2E}/nonewprivs:1.3": _image(
            base, [_program(f"{parts}/nonewprivs", "nnp", 0o4755)], {"Entrypoint": ["/nnp"]}
        ),
        f"{_STAGING}/hostnet-nginx-{architecture()}:latest": _image(base, [*nginx, _nginx_config(12003)], serve),
        f"{_STAGING}/test-image-predefined-group:latest": _image(base, _group_files(), {"User": "1000"}),
        **{f"{_STAGING}/{name}": _marked(base, name) for name in _references()},
        **{f"{_STAGING}/test-image-tags:{tag}": _marked(base, "test-image-tags") for tag in (1, 2, 3)},
        **{f"{_STAGING}/test-image-user-{kind}:latest": _image(base, [], {"User": user}) for kind, user in _USERS},
    }


_USERS = (
    ("uid", "1002"),
    ("username", "www-data"),
    ("uid-group", "1003:1004"),
    ("username-group", "www-data:1004"),
)


def _references() -> Sequence[str]:
    single = [f"test-image-{number}:latest" for number in (1, 2, 3)]
    return ["test-image-latest:latest", "test-image-tag:test", "test-image-tag:all", *single]


def _image(base: Sequence[Entry], more: Sequence[Entry], config: Mapping[str, object]) -> ImagePlan:
    return ImagePlan([base, more] if more else [base], {"Env": [_PATH], "Cmd": ["sh"], **config})


def _marked(base: Sequence[Entry], name: str) -> ImagePlan:
    return _image(base, [Entry("marker", name.encode())], {})


@functools.cache
def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _program(path: str, name: str, mode: int = 0o755) -> Entry:
    return Entry(name, _bytes(path), mode)


def _base(parts: str) -> list[Entry]:
    """Busybox with its applets as hard links: masking /bin/ls must not mask the shell."""
    path = f"{parts}/busybox"
    applets = [name for name in run(path, "--list").split() if name != "busybox"]
    return [
        *(directory(name) for name in _FOLDERS),
        directory("tmp", 0o1777),
        symlink("sbin", "bin"),
        _program(path, "bin/busybox"),
        Entry("etc/passwd", _PASSWD.encode()),
        Entry("etc/group", _GROUP.encode()),
        *(hardlink(f"bin/{name}", "bin/busybox") for name in applets),
    ]


def _group_files() -> list[Entry]:
    passwd = f"{_PASSWD}default-user:x:1000:1000:default-user:/home/default-user:/bin/sh\n"
    group = f"{_GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
    return [
        Entry("etc/passwd", passwd.encode()),
        Entry("etc/group", group.encode()),
        directory("home/default-user", 0o755, 1000, 1000),
    ]


def _libraries(tree: str) -> list[Entry]:
    """Every shared library that the packages have in the directories that the loader looks into, and the loader."""
    found: dict[str, Entry] = {}
    folders = [*glob.glob(f"{tree}/lib/*-linux-gnu"), *glob.glob(f"{tree}/usr/lib/*-linux-gnu"), f"{tree}/lib64"]
    loaders = glob.glob(f"{tree}/lib/ld-linux-*")
    for path in loaders + [path for folder in folders for path in sorted(glob.glob(f"{folder}/*.so*"))]:
        _with_parents(found, os.path.relpath(path, tree), path)
    return list(found.values())


def _with_parents(found: dict[str, Entry], name: str, path: str) -> None:
    parts = name.split("/")
    for depth in range(1, len(parts)):
        found.setdefault("/".join(parts[:depth]), directory("/".join(parts[:depth])))
    found[name] = symlink(name, os.readlink(path)) if os.path.islink(path) else Entry(name, _bytes(path), 0o755)


def _nginx(tree: str) -> list[Entry]:
    folders = (
        "etc/nginx",
        "usr/share",
        "usr/share/nginx",
        "usr/share/nginx/html",
        "var/lib",
        "var/lib/nginx",
        "var/log",
    )
    return [
        *_libraries(tree),
        *(directory(name) for name in (*folders, "var/log", "var/log/nginx")),
        _program(f"{tree}/usr/sbin/nginx", "usr/sbin/nginx"),
        Entry("usr/share/nginx/html/index.html", _PAGE),
    ]


def _nginx_config(port: int) -> Entry:
    return Entry("etc/nginx/nginx.conf", _NGINX.format(port=port).encode())


def _httpd(tree: str) -> list[Entry]:
    home = "usr/local/apache2"
    folders = ("usr/local", home, *(f"{home}/{name}" for name in ("bin", "conf", "htdocs", "modules")))
    modules = ("mod_mpm_event.so", "mod_authz_core.so", "mod_dir.so")
    config = f"{home}/conf/httpd.conf"
    return [
        *_libraries(tree),
        *(directory(name) for name in (*folders, "etc/apache2")),
        _program(f"{tree}/usr/sbin/apache2", f"{home}/bin/httpd"),
        *(_program(f"{tree}/usr/lib/apache2/modules/{name}", f"{home}/modules/{name}") for name in modules),
        Entry(config, _HTTPD.encode()),
        symlink("etc/apache2/apache2.conf", f"/{config}"),  # where Debian's httpd looks
        Entry(f"{home}/htdocs/index.html", _PAGE),
    ]
