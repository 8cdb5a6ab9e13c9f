"""The verbs of `pairvpr`, a module each; a module that is here is a verb."""
