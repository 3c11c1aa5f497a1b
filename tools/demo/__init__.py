"""`ratchet demo`: the whole loop on the simulated bench, told in stages."""
