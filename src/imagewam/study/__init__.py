"""The paper's claims at the size of the tiny policy: arms of equal data, steps and batch, with several seeds."""
