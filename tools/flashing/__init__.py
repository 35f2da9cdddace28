"""Puts the runtime onto boards: bundles, root folders, ssh."""
