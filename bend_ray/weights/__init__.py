"""Which parameters of a classifier vary between members, and their snapshots."""
