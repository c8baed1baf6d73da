"""Training a whole classifier: the base, and the rivals that an ensemble is compared with."""
