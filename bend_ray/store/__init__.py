"""Where a run is kept: folders, the kinds of artifact in them, and from what each was made."""
