"""The configuration of a training run: settings, presets and TOML files."""
