"""Many classifiers as one: inference that shares what members share, aggregation, and how good it is."""
