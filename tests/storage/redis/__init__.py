"""The Redis backend, on real servers."""
