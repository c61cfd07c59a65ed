"""Batch files: requests by the thousand in one file, answered when there is room, resumable after a restart."""
