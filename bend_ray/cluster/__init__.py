"""The Ray cluster: how it is reached, what it has, and what keeps work going on it whoever dies."""
