"""One file per family of operators; importing a file fills the table in ``registry``."""
