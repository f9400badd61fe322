"""What cffi makes of kernel.h."""

from typing import Any

ffi: Any
lib: Any
