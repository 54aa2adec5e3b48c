"""What outlives the process: durable files, sealed records, folders behind a URL."""
