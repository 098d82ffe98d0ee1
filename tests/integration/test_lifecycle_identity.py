"""Who a container's program is: users, groups, capabilities, seccomp, environment, directory."""

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.configs import env
from tests.support.cri import attempt, log_text, refused
from tests.support.layout import directory
from tests.support.world import World

STATUS = "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status"
DEFAULT = 0xA80425FB
NET_ADMIN, NET_BIND = 1 << 12, 1 << 10
STAY = "sleep 600"


def values(text: str) -> dict[str, int]:
    """Parse lines of /proc/self/status into numbers (capabilities are hexadecimal)."""
    rows = (line.split() for line in text.splitlines())
    return {key.rstrip(":"): int(value, 16) for key, value in rows}


async def test_a_user_by_id_by_name_and_from_the_image(world: World) -> None:
    image = await world.make_image("user", config={"User": "tester"})
    show = "id -u; id -g"
    assert (await world.once(show)).stdout.split() == ["0", "0"]
    assert (await world.once(show, security={"run_as_user": {"value": 1234}})).stdout.split() == ["1234", "0"]
    assert (await world.once(show, security={"run_as_username": "www-data"})).stdout.split() == ["33", "33"]
    assert (await world.once(show, image=image)).stdout.split() == ["1000", "1000"]
    both = {"run_as_user": {"value": 1000}, "run_as_group": {"value": 77}}
    assert (await world.once(show, image=image, security=both)).stdout.split() == ["1000", "77"]


async def test_an_unknown_user_and_a_group_without_a_user_are_refused(world: World) -> None:
    pod = await world.pod()
    only_group = world.config(STAY, security={"run_as_group": {"value": 5}})
    details = await refused(world.cri.create(pod.id, only_group, pod.config), grpc.StatusCode.INVALID_ARGUMENT)
    assert "run_as_group" in details
    container = await world.cri.create(
        pod.id, world.config(STAY, security={"run_as_username": "nobody-knows"}), pod.config
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.cri.start(container)
    assert "nobody-knows" in str(caught.value.details())


@pytest.mark.parametrize(("policy", "expected"), [(0, {3000, 4000, 50000}), (1, {3000, 4000})], ids=["merge", "strict"])
async def test_supplemental_groups_by_policy_in_run_exec_and_status(
    world: World, policy: int, expected: set[int]
) -> None:
    security = {
        "run_as_user": {"value": 1000},
        "run_as_group": {"value": 3000},
        "supplemental_groups": [4000],
        "supplemental_groups_policy": policy,
    }
    pod = await world.pod()
    container = await world.run(pod, f"id -G; {STAY}", security=security, name="groups")
    status = await world.cri.status(container)
    user = status.user.linux
    assert (user.uid, user.gid, set(user.supplemental_groups)) == (1000, 3000, expected)
    inside = await world.cri.output(container, "sh", "-c", "id -G; grep ^Groups: /proc/self/status")
    first, second = inside.splitlines()
    assert {int(g) for g in first.split()} == expected
    assert {int(g) for g in second.split()[1:]} | {3000} == expected


async def test_capabilities_of_root_are_the_default_ones(world: World) -> None:
    found = values((await world.once(STATUS)).stdout)
    assert found["CapInh"] == found["CapAmb"] == 0
    assert found["CapPrm"] == found["CapEff"] == found["CapBnd"] == DEFAULT


async def test_capabilities_of_a_user_are_only_a_bound(world: World) -> None:
    security = {"run_as_user": {"value": 1000}, "capabilities": {"add_capabilities": ["NET_ADMIN"]}}
    container = await world.run(await world.pod(), STAY, security=security)
    inside = await world.cri.output(container, "sh", "-c", STATUS)
    outside = (await world.once(STATUS, security=security)).stdout
    for found in (values(inside), values(outside)):
        assert found["CapInh"] == found["CapAmb"] == found["CapEff"] == found["CapPrm"] == 0
        assert found["CapBnd"] == DEFAULT | NET_ADMIN


@pytest.mark.parametrize("name", ["NET_BIND_SERVICE", "CAP_NET_BIND_SERVICE", "net_bind_service"])
async def test_all_can_be_dropped_and_one_added_in_any_spelling(world: World, name: str) -> None:
    security = {"capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": [name]}}
    found = values((await world.once(STATUS, security=security)).stdout)
    assert found["CapEff"] == found["CapBnd"] == NET_BIND


async def test_an_unknown_capability_is_refused_by_its_field(world: World) -> None:
    pod = await world.pod()
    config = world.config(STAY, security={"capabilities": {"add_capabilities": ["FLY"]}})
    details = await refused(world.cri.create(pod.id, config, pod.config), grpc.StatusCode.INVALID_ARGUMENT)
    assert "FLY" in details
    assert "capabilities" in details


async def test_seccomp_and_no_new_privileges_follow_the_request(world: World) -> None:
    assert values((await world.once(STATUS)).stdout)["Seccomp"] == 0
    default = {"seccomp": {"profile_type": 0}, "no_new_privs": True}
    found = values((await world.once(STATUS, security=default)).stdout)
    assert (found["Seccomp"], found["NoNewPrivs"]) == (2, 1)
    denied = await world.once("unshare -U true; unshare -m true", security=default)
    assert denied.stderr.count("Operation not permitted") == 2
    container = await world.run(await world.pod(), STAY, security=default)
    inside = values(await world.cri.output(container, "sh", "-c", STATUS))
    assert (inside["Seccomp"], inside["NoNewPrivs"]) == (2, 1)


async def test_home_comes_from_passwd_or_is_root_and_an_empty_one_is_kept(world: World) -> None:
    show = 'echo "${HOME-unset}"'
    assert (await world.once(show)).stdout == "/root\n"
    assert (await world.once(show, security={"run_as_user": {"value": 1000}})).stdout == "/home/tester\n"
    assert (await world.once(show, security={"run_as_user": {"value": 4321}})).stdout == "/\n"
    image = await world.make_image("home", config={"Env": ["PATH=/bin", "HOME="]})
    assert (await world.once(show, image=image)).stdout == "\n"


async def test_the_request_overrides_the_images_environment_and_the_last_one_wins(world: World) -> None:
    envs = [env("IMAGE_VARIABLE", "first"), env("IMAGE_VARIABLE", "last")]
    assert (await world.once("echo $IMAGE_VARIABLE")).stdout == "from the image\n"
    assert (await world.once("env | grep IMAGE_VARIABLE", envs=envs)).stdout == "IMAGE_VARIABLE=last\n"


async def test_no_variable_of_ours_reaches_the_program(world: World) -> None:
    names = {line.partition("=")[0] for line in (await world.once(["env"])).stdout.splitlines()}
    assert names <= {"PATH", "HOME", "HOSTNAME", "IMAGE_VARIABLE"}
    container = await world.run(await world.pod(), STAY)
    inside = {line.partition("=")[0] for line in (await world.cri.output(container, "env")).splitlines()}
    assert inside == names


async def test_a_working_directory_is_made_and_a_private_one_is_entered(world: World) -> None:
    assert (await world.once("pwd", working_dir="/made/on/demand")).stdout == "/made/on/demand\n"
    image = await world.make_image("private", [directory("private", 0o700, 1000, 1000)])
    owner = {"run_as_user": {"value": 1000}}
    assert (await world.once("pwd", image=image, working_dir="/private", security=owner)).stdout == "/private\n"
    weak_root = {"capabilities": {"drop_capabilities": ["DAC_OVERRIDE", "DAC_READ_SEARCH"]}}
    outcome = await world.once(["/bin/pwd"], image=image, working_dir="/private", security=weak_root)
    assert (outcome.code, outcome.stdout) == (0, "/private\n")


async def test_a_relative_working_directory_is_refused_or_taken_from_the_root(world: World) -> None:
    pod = await world.pod()
    config = world.config("pwd", working_dir="relative", name="relative")
    container, error = await attempt(world.cri.run(pod.id, config, pod.config))
    if error is not None:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "working_dir" in str(error.details())
    else:
        assert (await world.cri.wait_exit(str(container))).exit_code == 0
        assert log_text(pod.log("relative")) == b"/relative\n"


async def test_a_terminal_sets_term_and_is_a_terminal(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, "tty; echo $TERM; exit 4", tty=True, name="tty")
    assert (await world.cri.wait_exit(container)).exit_code == 4
    reply = await world.cri.runtime.ContainerStatus(api.ContainerStatusRequest(container_id=container))
    assert reply.status.exit_code == 4
    lines = log_text(pod.log("tty")).decode().replace("\r", "").split()
    assert lines[0].startswith(("/dev/pts/", "/dev/console"))
    assert lines[1] == "xterm"
