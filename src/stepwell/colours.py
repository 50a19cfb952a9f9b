"""Colours of all pictures."""

#: Okabe & Ito's colours, which the colour-blind can tell apart, without the yellow (unreadable on
#: white); strongest contrast first.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
