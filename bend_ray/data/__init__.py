"""What is classified."""
