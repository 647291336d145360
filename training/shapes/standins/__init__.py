"""Stand-ins for the public base models: tiny ones in the same published formats, trained on the world of shapes."""
