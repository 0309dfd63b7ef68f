"""What is measured on what: one module per kind of benchmark."""
