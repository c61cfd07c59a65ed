"""The live shell on Ray: few, and marked."""
