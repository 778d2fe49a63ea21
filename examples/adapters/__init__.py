"""Networks of other packages, unchanged, as generators of Larmor. Each file needs the package it is called after."""
