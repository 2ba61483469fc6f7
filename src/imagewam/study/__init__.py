"""The paper's claims at the size of the tiny policy: arms on equal data, steps and batch, with several seeds.

Not equal, and told in the table: arms that learn to edit first train twice the steps; ImageWAM's start from a VAE and
a text encoder that know the recipe's frames and sentences, the plain policies from nothing.
"""
