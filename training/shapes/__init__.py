"""A small world of colored shapes, known exactly: its pictures, its tasks, its oracle and its examination."""
