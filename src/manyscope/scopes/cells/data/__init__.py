"""From files of images and labels to normalised, augmented, split ones."""
