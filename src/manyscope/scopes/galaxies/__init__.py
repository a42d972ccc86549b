"""Cutouts of galaxies: an invariant latent space in which neighbours look alike and strangers stand out."""
