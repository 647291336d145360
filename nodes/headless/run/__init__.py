"""Running a workflow: the executor, its cache, events and reports."""
