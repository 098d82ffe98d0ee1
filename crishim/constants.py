"""Values that several layers must agree on, each with one name."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for when nobody says; what docker gives to containers."""

SHM_SIZE = 64 * 1024 * 1024
"""Bytes of a pod's /dev/shm, as docker and the other runtimes have it."""

MESSAGE_BYTES = 16 * 1024 * 1024
"""Longest gRPC message that kubelet and crictl receive, instead of grpc's 4 MiB."""

KEEPER_SOCKET = "keeper.sock"
"""Name of a keeper's socket in its pod's directory."""
