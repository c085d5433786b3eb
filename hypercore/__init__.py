"""Hypercore for Python: a secure append-only log with pluggable storage and transports."""
