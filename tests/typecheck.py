"""The checker of types in tests: beartype, for which a whole number is a number, as for PEP 484."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
