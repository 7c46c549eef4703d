"""This package's models in other libraries, one file each; importing a file needs its library."""
