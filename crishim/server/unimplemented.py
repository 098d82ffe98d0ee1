"""RPCs that this version does not have, each with the sentence for its caller: what is missing, what to use instead.

Invariant: together with the servicers' methods this covers all RPCs, without overlap (a test compares).
"""

_SESSION = "this version does not have streaming sessions (exec, attach, port-forward); {0}"
_CHECKPOINT = "this version does not have checkpoint and restore; {0}"
_RESIZE = "this version does not have pod-level resizing; use UpdateContainerResources for each container"


SENTENCES = {
    "Exec": _SESSION.format("use ExecSync (crictl exec -s) for commands that need no input"),
    "Attach": _SESSION.format("read the container's log file (crictl logs) instead"),
    "PortForward": _SESSION.format("connect to the pod's address, or publish the port as host_port"),
    "CheckpointContainer": _CHECKPOINT.format("stop the container and start a new one"),
    "CheckpointPod": _CHECKPOINT.format("stop the sandbox and run a new one"),
    "RestorePod": _CHECKPOINT.format("use RunPodSandbox, CreateContainer and StartContainer"),
    "UpdatePodSandboxResources": _RESIZE,
}
