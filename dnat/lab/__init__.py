"""The laboratory: what compares methods, and the command. `dnat` itself never imports it."""
