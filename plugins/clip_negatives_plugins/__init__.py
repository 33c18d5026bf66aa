"""The default plugins: one package and one entry point each; none imports another."""
