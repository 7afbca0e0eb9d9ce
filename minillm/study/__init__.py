"""Tools that explain and prove: the gradient-check table, profiles, descriptions, differences, parallel reports."""
