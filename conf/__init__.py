"""The Hydra configuration, as package data: `config_path="pkg://conf"` finds it from a wheel as from a checkout."""
