"""Prompt selection inside the trainers of others; each module imports its framework when it is used."""
