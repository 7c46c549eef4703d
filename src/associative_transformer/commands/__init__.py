"""The commands of `ait`, one file each; `run` takes the words behind the command."""
