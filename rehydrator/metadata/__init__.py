"""Documents at the door: stream metadata, file names by convention."""
