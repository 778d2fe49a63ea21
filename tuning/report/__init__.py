"""What a search found, as a page."""
