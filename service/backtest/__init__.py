"""Evaluation over event files, by the code that serves: no broker, no second process."""
