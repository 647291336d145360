"""The node classes that a workflow may name: what they declare and how they are called."""
