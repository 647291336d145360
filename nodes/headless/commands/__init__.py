"""The commands `uniworld run` and `uniworld check`, and the setup of all commands that use nodes."""
