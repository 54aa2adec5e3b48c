"""Versions on disk: what a version is, how one is published, which one serves."""
