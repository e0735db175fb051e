"""Builds the native hot path of the Unicorn engine; without a C compiler it is left out."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/pyxen/cpu/unicorn/native")

setup(
    ext_modules=[
        Extension(
            "pyxen.cpu.unicorn._hot",
            sources=sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            extra_compile_args=["-O2", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"],
            libraries=["dl"],
            optional=True,
        )
    ]
)
