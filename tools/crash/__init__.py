"""Proof that the episode store survives: processes that are killed, and power that goes."""
