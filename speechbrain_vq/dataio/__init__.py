"""Audio, manifests and files: what goes into models and comes out of them."""
