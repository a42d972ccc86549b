"""The scope `neutrinos`: where a neutrino came from, from pulses of light in an array of optical modules."""
