"""Malformed and hostile requests for a policy server, by the hundred thousand."""
