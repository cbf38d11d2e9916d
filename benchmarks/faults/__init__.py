"""Faults and load that a server must survive, counted: ``python -m benchmarks.faults`` and ``…faults.soak``."""
