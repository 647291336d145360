"""Training of nano, from random weights to the shipped model."""
