"""How errors name an image: as the person who reads them would write it."""

from pathlib import Path

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from crishim.errors import NotFoundError
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service
from tests.support.cri import attempt
from tests.support.instance import Instance
from tests.support.world import World


@pytest.mark.parametrize("target", [":missing", f"@sha256:{'7' * 64}"])
async def test_what_a_registry_does_not_have_is_named_as_it_was_asked_for(
    fake: FakeRegistry, tmp_path: Path, target: str
) -> None:
    async with Service(str(tmp_path)) as service:
        with pytest.raises(NotFoundError, match=f"^{fake.host}/a{target}: "):
            await service.images.pull(f"{fake.host}/a{target}")


PULLS = {
    "away": (["127.0.0.1:1/x"], "code = Unknown desc = RegistryUnavailable: 127.0.0.1:1/x:latest: "),
    "port": (
        ["127.0.0.1:99999/x"],
        "code = InvalidArgument desc = image.image: '127.0.0.1:99999/x' has the port 99999",
    ),
    "auth": (["--auth", "é", "127.0.0.1:1/x"], "code = InvalidArgument desc = auth.auth: is not base64"),
}


@pytest.mark.parametrize("case", PULLS)
def test_what_crictl_shows_of_a_pull_that_cannot_be(shared_instance: Instance, case: str) -> None:
    """kubelet compares the first word of a registry's failure, after its client has taken the status Unknown off."""
    words, shown = PULLS[case]
    done = shared_instance.crictl("pull", *words, check=False)
    assert done.returncode == 1
    assert shown in done.stderr


@pytest.mark.parametrize("token", ["a\nb", "a\x00b", "t\u00e9"])
async def test_a_token_with_odd_characters_is_refused_by_its_field(world: World, token: str) -> None:
    image = api.ImageSpec(image="127.0.0.1:1/x")
    for auth in (api.AuthConfig(registry_token=token), api.AuthConfig(registry_token=token, username="u")):
        _, error = await attempt(world.cri.image.PullImage(api.PullImageRequest(image=image, auth=auth)))
        assert error is not None
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(error.details()).startswith("auth.registry_token: ")
