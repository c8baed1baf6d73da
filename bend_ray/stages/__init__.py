"""The verbs: one file a stage. A stage reads artifacts of a run, makes its own, and is skipped where that is there."""
