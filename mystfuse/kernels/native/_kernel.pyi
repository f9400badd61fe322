"""The module that cffi makes from kernel.h."""

from typing import Any

ffi: Any
lib: Any
