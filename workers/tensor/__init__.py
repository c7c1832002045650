"""One model on several ranks: who exchanges what, how modules are cut, and how it is found out that a cut is right."""
