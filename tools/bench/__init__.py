"""What `ratchet bench` measures: one module a benchmark, each with a click command called ``command``."""
