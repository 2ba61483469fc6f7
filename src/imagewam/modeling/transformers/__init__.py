"""Networks that diffusers does not ship, loading their published weights."""
