"""What the recipes of a family of tasks share."""
