"""Running workflows: the executor, its cache, events and reports."""
