"""What the service remembers of users and items: history slabs and the item catalogue."""
