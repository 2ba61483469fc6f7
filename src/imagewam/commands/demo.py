"""`imagewam demo`: the whole way once on the CPU, from expert episodes to a policy in closed loop."""
