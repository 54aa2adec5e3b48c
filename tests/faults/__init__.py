"""The faults harness: see docs/faults.md. `python -m tests.faults` runs it."""
