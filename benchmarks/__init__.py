"""How fast, beside what could be: a load driver for any FHIR R4 server, and the ceilings of this machine. `python -m benchmarks.run --help`."""
