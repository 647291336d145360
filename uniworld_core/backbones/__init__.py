"""The networks that model families are made of."""
