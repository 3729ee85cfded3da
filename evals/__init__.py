"""Measures agents: every alignment on one and the same evaluation."""
