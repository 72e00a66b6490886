"""CIFAR-10, and other small images laid out alike."""
