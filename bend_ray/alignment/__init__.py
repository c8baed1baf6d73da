"""Hidden units of one chain matched to those of others, as far as the graph says that they may change places."""
