"""Workloads for simulated and live clusters alike: what is asked when, from files or generated; never any text."""
