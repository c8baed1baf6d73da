"""Snapshots of the subset: chains that leave them, and how they are kept."""
