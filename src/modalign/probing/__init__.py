"""Probing: what encoders and pairs promise before anything is trained."""
