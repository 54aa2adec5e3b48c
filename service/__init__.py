"""Headwater: a streaming recommendation service that learns from behaviour as it flows."""

__version__ = "0.1.0"
