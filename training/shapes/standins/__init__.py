"""Stand-ins for the public base models: tiny models in the same formats, trained on the world of shapes."""
