"""What an edit changes: masks and weights."""
