"""The policy: what happens, in which order."""
