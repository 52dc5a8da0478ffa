"""Generated and read tasks with exact metrics."""
