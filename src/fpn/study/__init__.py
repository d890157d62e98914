"""The paper's experiments: what runs make a table, how they are run, what came of them."""
