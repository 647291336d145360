"""Post-training of nano in the world of shapes: fresh tasks, the oracle as reward, and the measurement of a gain."""
