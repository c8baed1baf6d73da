"""Which generator to try next, and how good it is: what a search is made of but for Ray."""
