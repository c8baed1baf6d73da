"""Classifiers: networks, which of their parameters vary, and their graphs, cut where members part."""
