"""The rights that a key can have."""

from typing import Literal, get_args

Right = Literal["predict", "session", "pin", "operate", "admin"]
RIGHTS: tuple[Right, ...] = get_args(Right)
HIGHEST: Right = "admin"
