"""The models of this user on this machine, and where they come from."""
