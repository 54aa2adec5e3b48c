"""A search for better settings over a file of events, by backtests of the live model."""
