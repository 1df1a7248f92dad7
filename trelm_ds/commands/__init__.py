"""The sub-commands of `trelm`, thin: arguments, a call, what is printed. Each imports what it needs when it runs."""
