"""Vendor-shaped EHRs and a synthetic population, for demos, tests and integration work."""
