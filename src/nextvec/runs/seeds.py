"""Seeds of random generators."""

import hashlib


def generator_seed(*parts: int) -> int:
    """One seed for each (seed, purpose, number), so that order, dropout and negatives do not depend on earlier draws."""
    name = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1
