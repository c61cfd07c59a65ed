"""Decides what a prefill node does: queue, chunk, offer, lend. Pure: time is an argument."""
