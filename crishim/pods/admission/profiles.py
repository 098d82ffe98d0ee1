"""Profiles and labels of the security modules."""

from crishim.pods.admission import checks
from crishim.pods.admission.abilities import Abilities
from crishim.problems import Problems
from crishim.request import ContainerSecurity, ProfileType, SandboxSecurity, SecurityProfile

_FIELD = "config.linux.security_context"


def judge(problems: Problems, security: SandboxSecurity | ContainerSecurity, abilities: Abilities) -> None:
    """Judge the profiles of a pod or a container, and the paths that hide things from it."""
    _profile(problems, f"{_FIELD}.seccomp.localhost_ref", security.seccomp)
    _profile(problems, f"{_FIELD}.apparmor.localhost_ref", security.apparmor)
    _apparmor(problems, security.apparmor, abilities)
    label = security.selinux
    if label is not None and (label.user or label.role or label.type or label.level) and abilities.selinux:
        checks.unsupported(problems, f"{_FIELD}.selinux_options", "SELinux labels", "leave them out")
    if isinstance(security, ContainerSecurity):
        for field in ("masked_paths", "readonly_paths"):
            for n, path in enumerate(getattr(security, field)):
                checks.absolute(problems, f"{_FIELD}.{field}[{n}]", path)


def _profile(problems: Problems, field: str, profile: SecurityProfile | None) -> None:
    if profile is None:
        return
    if profile.profile_type is ProfileType.LOCALHOST:
        checks.given(problems, field, profile.localhost_ref, "name the profile")
    elif profile.localhost_ref:
        problems.add(
            field, f"must be empty with profile_type {profile.profile_type.name}, is {profile.localhost_ref!r}"
        )


def _apparmor(problems: Problems, profile: SecurityProfile | None, abilities: Abilities) -> None:
    """A profile that was asked for by name and is not applied would be no protection; RuntimeDefault may be none."""
    if profile is None or profile.profile_type is not ProfileType.LOCALHOST:
        return
    if abilities.apparmor:
        remedy = "use RuntimeDefault, which is unconfined for now, or Unconfined"
        checks.unsupported(problems, f"{_FIELD}.apparmor", f"profile {profile.localhost_ref!r}", remedy)
        return
    problems.add(
        f"{_FIELD}.apparmor",
        f"profile {profile.localhost_ref!r} cannot be applied: AppArmor is not enabled on this host",
    )
