"""A simulated year of a network of hospitals, clinics, post-acute facilities and payers: `python -m benchmarks.year --help`."""
