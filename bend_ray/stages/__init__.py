"""The verbs, in the driver, one file a stage. A stage reads artifacts of a run, makes its own, and is skipped where
that is there. What it starts in Ray's processes stands in `workers/`."""
