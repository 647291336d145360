"""The command `uniworld batch`: one workflow over many rows."""
