"""Nearest rows of a bank."""

from nextvec.index.exact import ExactIndex, Neighbours

__all__ = ["ExactIndex", "Neighbours"]
