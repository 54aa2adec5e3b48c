"""The service put together: the way of an event, the hot swap, start and stop."""
