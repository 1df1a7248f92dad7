"""The sub-commands of `trelm`: arguments, one call, printed result. Each imports what it needs only when it runs."""
