"""Coverage-guided fuzzing of what turns a topic's bytes into events: `make fuzz SECONDS=60`."""
