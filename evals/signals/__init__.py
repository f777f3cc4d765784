"""The five signals of an end-to-end run, most sensitive first, and the verdict; pure functions on records."""
