"""Fixtures: the demo image, and a pyxen home for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.errors import UserError
from pyxen.image.demo import DemoImage, build_demo
from tests.linux.host import Host, write_config


def _image(flavour: str, directory: Path) -> DemoImage:
    try:
        return build_demo(directory, flavour=flavour, say=lambda line: None)
    except UserError as error:
        pytest.skip(f"no {flavour} demo image: {error.message}")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoImage:
    """Debian's cloud kernel and a busybox initramfs."""
    return _image("cloud", tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def full_demo(tmp_path_factory: pytest.TempPathFactory) -> DemoImage:
    """The same with Debian's full kernel."""
    return _image("full", tmp_path_factory.mktemp("full-demo"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A pyxen home of its own."""
    host = Host(tmp_path / "home")
    yield host
    host.close()


@pytest.fixture
def config(tmp_path: Path, demo: DemoImage) -> Path:
    """An xl.cfg for the demo guest."""
    return write_config(
        tmp_path / "guest.cfg",
        name="guest",
        kernel=demo.kernel,
        ramdisk=demo.ramdisk,
        extra="console=hvc0 earlyprintk=xen lockdown=confidentiality",
        memory=128,
    )


@pytest.fixture
def full_config(tmp_path: Path, full_demo: DemoImage) -> Path:
    """The same with Debian's full kernel, which needs more memory."""
    return write_config(
        tmp_path / "full.cfg",
        name="guest",
        kernel=full_demo.kernel,
        ramdisk=full_demo.ramdisk,
        extra="console=hvc0 earlyprintk=xen",
        memory=256,
    )
