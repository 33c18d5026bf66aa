"""Files: clusters folders, labels folders, manifests, and safe reading and writing."""
