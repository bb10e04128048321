"""Generated messages and stubs of package ferret.v1."""
