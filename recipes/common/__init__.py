"""Parts shared by the recipes."""
