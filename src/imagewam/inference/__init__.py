"""What a decision costs, and how to make it cheaper."""
