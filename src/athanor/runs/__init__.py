"""Content-addressed runs: their manifests, their lineage, and their reproduction."""
