"""Builds the native hot path of the Unicorn engine; without a C compiler the package still installs."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "pyxen.cpu.unicorn._hot",
            sources=["src/pyxen/cpu/unicorn/native/module.c"],
            extra_compile_args=["-O2", "-fno-strict-aliasing", "-std=c11"],
            libraries=["dl"],
            optional=True,
        )
    ]
)
