"""Image classifiers whose blocks run at some positions of an image; see `kinds.skipping`."""

from stepwell.kinds.skipping import ADVICE as ADVICE
from stepwell.kinds.skipping import NEXT as NEXT
from stepwell.kinds.skipping import SECTIONS as SECTIONS
from stepwell.kinds.skipping import evaluate as evaluate
from stepwell.kinds.skipping import export as export
from stepwell.kinds.skipping import open as open
from stepwell.kinds.skipping import predict as predict
from stepwell.kinds.skipping import serve as serve
from stepwell.kinds.skipping import show_export as show_export
from stepwell.kinds.skipping import show_results as show_results

NAME = "a network whose blocks run at some positions"
