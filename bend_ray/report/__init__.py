"""The report: numbers, figures and words about one run. Nouns only; the evaluate stage brings the predictions."""
