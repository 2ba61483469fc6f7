"""What a policy can show besides its actions: where they look, and the frame they lead to."""
