"""The node classes that a workflow may use: their declarations, widgets and calls."""
