"""Scoring: from a batch of events to rankings by the champion."""
