"""The native kernels, which pyproject.toml cannot name."""

from setuptools import setup

setup(cffi_modules=["mystfuse/kernels/native/build.py:ffi"])
