"""The maths of braiding, in pure torch: fusion modules, injection, readout. Knows no network."""
