"""Jobs, one file each; imported by their configuration, so that one job does not wait for what another needs."""
