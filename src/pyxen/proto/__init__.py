"""Protocols without I/O: bytes in, typed messages out."""
