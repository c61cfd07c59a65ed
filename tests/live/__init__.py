"""The live shell: links, hosts and local clusters of real processes."""
