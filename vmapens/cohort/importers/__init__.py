"""One module per source; each turns a foreign layout into a cohort folder."""
