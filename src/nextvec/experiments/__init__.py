"""Experiments: many runs, one exam, and what may be concluded from them."""
