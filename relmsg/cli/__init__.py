"""The command `relmsg`: one file a group of verbs, thin; what they do lives in the packages below."""
