"""The commands `uniworld train`, `uniworld data` and `uniworld eval`."""
