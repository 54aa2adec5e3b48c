"""Figures, not assertions: what the service does beside what a bare client does in the same run."""
