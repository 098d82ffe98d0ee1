"""Who runs: user, groups and capabilities. Whether a name exists is known only in the image."""

from crishim.linux import capabilities
from crishim.pods.admission import checks
from crishim.problems import Problems
from crishim.request import Capabilities, ContainerSecurity, SandboxSecurity

_FIELD = "config.linux.security_context"


def sandbox(problems: Problems, security: SandboxSecurity) -> None:
    """Judge a pod's user and groups."""
    _ids(problems, security, named=False)


def container(problems: Problems, security: ContainerSecurity, pod: SandboxSecurity) -> None:
    """Judge a container's user, groups, capabilities and privilege."""
    _ids(problems, security, named=bool(security.run_as_username))
    checks.one_line(problems, f"{_FIELD}.run_as_username", security.run_as_username)
    if security.run_as_username and security.run_as_user is not None:
        problems.add(
            f"{_FIELD}.run_as_username", "must be empty when run_as_user is given: only one of both says who runs"
        )
    if security.privileged and not pod.privileged:
        problems.add(f"{_FIELD}.privileged", "needs a privileged sandbox, and this one is not")
    _capabilities(problems, security.capabilities)


def _ids(problems: Problems, security: SandboxSecurity | ContainerSecurity, *, named: bool) -> None:
    for name in ("run_as_user", "run_as_group"):
        value = getattr(security, name)
        if value is not None:
            checks.number(problems, f"{_FIELD}.{name}", value, 0, checks.MAX_ID)
    if security.run_as_group is not None and security.run_as_user is None and not named:
        problems.add(f"{_FIELD}.run_as_group", "needs a user: give run_as_user too")
    checks.ids(problems, f"{_FIELD}.supplemental_groups", security.supplemental_groups)


def _capabilities(problems: Problems, wanted: Capabilities) -> None:
    for field, names in (
        ("add_capabilities", wanted.add),
        ("drop_capabilities", wanted.drop),
        ("add_ambient_capabilities", wanted.add_ambient),
    ):
        for n, name in enumerate(names):
            if capabilities.parse((name,))[1]:
                problems.add(f"{_FIELD}.capabilities.{field}[{n}]", f"{name!r} is no capability (capabilities(7))")
