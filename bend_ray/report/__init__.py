"""The report: metrics, figures and text about one run. No Ray; the evaluate stage brings the predictions."""
