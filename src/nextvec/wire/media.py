"""Content types of request and answer bodies."""

F32, F16 = "application/vnd.nextvec.f32", "application/vnd.nextvec.f16"
JSON = "application/json"
OCTETS = "application/octet-stream"
PROBLEM = "application/problem+json"
BINARY = {F32: "<f4", OCTETS: "<f4", F16: "<f2"}
"""numpy's name of the values of each binary body."""
