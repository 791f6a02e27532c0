"""Connectors: trained modules, feature -> vector."""
