"""Statistics of two arms that answered the same questions; pure functions on counts and arrays."""
