"""A container's read/write layer: what its root directory looks like."""

from pathlib import Path

from crishim.paths import Paths
from crishim.pods.layers import ContainerLayers


def test_the_upper_directory_takes_mode_and_owner_of_the_images_root(tmp_path: Path) -> None:
    top = tmp_path / "layer"
    top.mkdir()
    top.chmod(0o1750)
    (tmp_path / "containers").mkdir()
    layers = ContainerLayers(Paths(str(tmp_path), str(tmp_path / "state")))
    layers.make("c" * 64, str(top))
    status = (tmp_path / "containers" / ("c" * 64) / "upper").stat()
    assert status.st_mode & 0o7777 == 0o1750
    assert (status.st_uid, status.st_gid) == (top.stat().st_uid, top.stat().st_gid)


def test_an_image_without_layers_has_a_root_that_all_may_enter(tmp_path: Path) -> None:
    (tmp_path / "containers").mkdir()
    ContainerLayers(Paths(str(tmp_path), str(tmp_path / "state"))).make("c" * 64)
    assert (tmp_path / "containers" / ("c" * 64) / "upper").stat().st_mode & 0o7777 == 0o755
