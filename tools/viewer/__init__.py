"""`ratchet episodes view`: a page on loopback that plays recorded episodes."""
