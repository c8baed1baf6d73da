"""What is classified, and by what."""
