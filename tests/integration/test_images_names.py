"""How errors name an image: as the person who reads them would write it."""

from pathlib import Path

import pytest

from crishim.errors import NotFoundError
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service


@pytest.mark.parametrize("target", [":missing", f"@sha256:{'7' * 64}"])
async def test_what_a_registry_does_not_have_is_named_as_it_was_asked_for(
    fake: FakeRegistry, tmp_path: Path, target: str
) -> None:
    async with Service(str(tmp_path)) as service:
        with pytest.raises(NotFoundError, match=f"^{fake.host}/a{target}: "):
            await service.images.pull(f"{fake.host}/a{target}")
