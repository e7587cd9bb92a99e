"""The one file that describes a braid: how it is read, checked and turned into frozen values."""
