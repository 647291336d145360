"""A small world of coloured shapes, known exactly: its pictures, its tasks, its oracle and its examination."""
