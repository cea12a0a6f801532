"""The lab: every table and figure of the paper measured anew, one file each, from an engine to a result."""
