"""`Preprocess` from and to the dicts in which other libraries publish their transforms."""
