"""Serves action chunks over gRPC and swaps policies without stopping."""
