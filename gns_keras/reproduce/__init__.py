"""A task trained as the paper has it, and its noise scale beside Table 1 of the paper."""
